-- include: groups
-- End the registration of a group, if it is the caller's.
local status_key = 'longcat:group:' .. given.group
local holder_key = status_key .. ':holder'
if redis.call('GET', holder_key) == given.token then
  local status = read_status(status_key)
  if status then redis.call('ZREM', idle_groups_key(status.pool), given.group) end
  redis.call('DEL', holder_key, status_key)
  redis.call('SREM', 'longcat:groups', given.group)
  note_fleet_change()
end
