-- include: clock
-- Idle groups of a pool, by the time at which their registrations end, by the server's clock as it is. A group has no
-- pool until it has loaded its model.
local function idle_groups_key(pool)
  return 'longcat:idle_groups:' .. (type(pool) == 'string' and pool or '')
end

-- The status of a group as a table, nil if it is not registered.
local function read_status(status_key)
  local is_read, status = pcall(cjson.decode, redis.call('GET', status_key))
  return is_read and type(status) == 'table' and status or nil
end

-- Note that a group has come, gone or changed its pool, or is usable or not by now. Services read the groups again.
local function note_fleet_change()
  redis.call('SET', 'longcat:fleet_changed', table.concat(redis.call('TIME'), '.'))
end
