-- For each priority: how many jobs wait, and for how many ms the one does that was submitted first.
local waiting = {}
for i, priority in ipairs(PRIORITIES) do
  local key = 'longcat:queued:' .. priority
  local id = redis.call('ZRANGE', key, 0, 0)[1]
  waiting[i] = {priority, redis.call('ZCARD', key), id and now - read(id).created_ms or 0}
end
return waiting
