-- How an attempt went: it is noted with the job, if that is still there, and tried again after `retry_ms` or never.
local key = 'longcat:delivery:' .. given.id
local attempt, settled = unpack(redis.call('HMGET', key, 'attempt', 'settled'))
if tonumber(attempt) ~= given.attempt or settled == attempt then return end
redis.call('HSET', key, 'settled', attempt)
given.entry.at_ms = now
if given.retry_ms then
  given.entry.next_ms = now + given.retry_ms
  redis.call('ZADD', 'longcat:outbox', given.entry.next_ms, given.id)
else
  redis.call('ZREM', 'longcat:outbox', given.id)
  redis.call('DEL', key)
end
add('webhook_deliveries', given.entry.outcome, 1)
if redis.call('EXISTS', record_key(given.job)) == 1 then
  redis.call('RPUSH', 'longcat:deliveries:' .. given.job, cjson.encode(given.entry))
end
