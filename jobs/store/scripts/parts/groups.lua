-- include: clock
-- Idle groups of a pool, by the time at which their registrations end. Release 0.2.0 does not keep it, so its idle
-- groups do not count. Times are the server's clock as it is.
local function idle_groups_key(pool)
  return 'longcat:idle_groups:' .. (type(pool) == 'string' and pool or '')
end
