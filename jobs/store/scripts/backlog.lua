-- The webhooks that are to be sent: how many, for how many ms the one has been due that was due first, and how many
-- hosts are paused.
local keys = {'longcat:outbox', 'longcat:outbox:due'}
local count, oldest_ms = 0, now
for _, key in ipairs(keys) do
  count = count + redis.call('ZCARD', key)
  oldest_ms = math.min(oldest_ms, first_score(key) or now)
end
return {count, now - oldest_ms, redis.call('ZCOUNT', PAUSED, now, '+inf')}
