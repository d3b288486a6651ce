-- The delivery that is due longest, for `lease_ms`; who takes it is not heard of again if another took it after that.
local id = redis.call('ZRANGE', 'longcat:outbox', '-inf', now, 'BYSCORE', 'LIMIT', 0, 1)[1]
if not id then return false end
redis.call('ZADD', 'longcat:outbox', now + given.lease_ms, id)
redis.call('HINCRBY', 'longcat:delivery:' .. id, 'attempt', 1)
return {id, redis.call('HGETALL', 'longcat:delivery:' .. id)}
