-- include: groups, allow_when_full
-- Register a group under its name for `ttl_ms`, and its pool for `pool_ttl_ms`. Return 1, or 0 if another worker is
-- registered under the name.
local status_key = 'longcat:group:' .. given.group
local holder_key = status_key .. ':holder'
local holder = redis.call('GET', holder_key)
if holder and holder ~= given.token then return 0 end
redis.call('SET', holder_key, given.token, 'PX', given.ttl_ms)
local status, before = cjson.decode(given.status), read_status(status_key)
if not before or before.pool ~= status.pool or (before.state == 'broken') ~= (status.state == 'broken') then
  note_fleet_change()
end
redis.call('SET', status_key, given.status, 'PX', given.ttl_ms)
redis.call('SADD', 'longcat:groups', given.group)
local time_ms = redis.call('TIME')[1] * 1000
if status.state == 'ready' then
  redis.call('ZADD', idle_groups_key(status.pool), time_ms + given.ttl_ms, given.group)
else
  redis.call('ZREM', idle_groups_key(status.pool), given.group)
end
redis.call('ZREMRANGEBYSCORE', idle_groups_key(status.pool), '-inf', time_ms)
if given.pool then
  redis.call('SET', 'longcat:pool:' .. given.pool, given.capability, 'PX', given.pool_ttl_ms)
  redis.call('ZADD', 'longcat:pools', now, given.pool)
  redis.call('ZREMRANGEBYSCORE', 'longcat:pools', '-inf', now - given.pool_ttl_ms)
end
return 1
