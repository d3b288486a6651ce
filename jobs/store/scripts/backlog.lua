-- include: outbox
-- The number of webhooks to be sent, for how many ms the oldest has been due, and the number of paused hosts.
local oldest_ms = math.min(first_score(DUE) or now, now)
return {redis.call('ZCARD', DUE), now - oldest_ms, redis.call('ZCOUNT', PAUSED, now, '+inf')}
