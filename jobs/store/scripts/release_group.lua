-- include: groups
-- End the registration of a group, if it is the caller's.
local status_key = 'longcat:group:' .. given.group
local holder_key = status_key .. ':holder'
if redis.call('GET', holder_key) == given.token then
  local is_read, status = pcall(cjson.decode, redis.call('GET', status_key))
  if is_read then redis.call('ZREM', idle_groups_key(status.pool), given.group) end
  redis.call('DEL', holder_key, status_key)
  redis.call('SREM', 'longcat:groups', given.group)
end
