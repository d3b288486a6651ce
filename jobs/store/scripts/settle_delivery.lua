-- include: outbox, metrics, allow_when_full
-- Record the outcome of an attempt in the job's delivery log. Schedule the next attempt after `retry_ms`, or remove the
-- delivery. If the delivery is gone, or was leased again meanwhile, only the state of its host changes.

local function host_responded()
  redis.call('DEL', failures_key(given.host))
  redis.call('ZREM', PAUSED, given.host)
end

local function host_failed()
  local failures = redis.call('INCR', failures_key(given.host))
  redis.call('PEXPIRE', failures_key(given.host), KEEP_FAILURES_MS)
  redis.call('ZREMRANGEBYSCORE', PAUSED, '-inf', now - KEEP_FAILURES_MS)
  if failures < FAILURES_TO_PAUSE then return end
  local pause_ms = math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ^ (failures - FAILURES_TO_PAUSE))
  redis.call('ZADD', PAUSED, now + pause_ms, given.host)
end

local was_in_flight
for _, key in ipairs(in_flight_keys(given.owner, given.host)) do
  was_in_flight = redis.call('ZREM', key, given.id .. ':' .. given.attempt)
end
if was_in_flight == 1 then
  if given.responded then host_responded() else host_failed() end
end

local attempt, settled = unpack(redis.call('HMGET', delivery_key(given.id), 'attempt', 'settled'))
if tonumber(attempt or 0) ~= given.attempt or settled == attempt then return end
given.entry.at_ms = now
if given.retry_ms then
  redis.call('HSET', delivery_key(given.id), 'settled', attempt)
  given.entry.next_ms = now + given.retry_ms
  schedule(given.id, given.owner, given.host, given.entry.next_ms)
  update_rotations(given.owner, given.host)
else
  remove_delivery(given.id)
end
count('webhook_deliveries', given.entry.outcome)
redis.call('RPUSH', 'longcat:delivery_log:' .. given.job, cjson.encode(given.entry))
