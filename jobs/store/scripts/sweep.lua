-- Leases, waits and retentions that ran out. Answers pairs of what was done and to which job.
local changes = {}

local function changed(what, id)
  table.insert(changes, {what, id})
end

-- While nobody swept, Redis was away, and holders could not renew their leases either: they get one more each.
-- Only one, so that leases run out also where sweeps are rare.
local last = tonumber(redis.call('GET', 'longcat:swept') or now)
redis.call('SET', 'longcat:swept', now)
for _, id in ipairs(redis.call('ZRANGE', 'longcat:leases', 0, -1)) do
  local lease_ms, spared = unpack(redis.call('HMGET', record_key(id), 'lease_ms', 'spared'))
  if now - last > lease_ms / 3 and not spared then
    redis.call('ZADD', 'longcat:leases', now + lease_ms, id)
    redis.call('HSET', record_key(id), 'spared', 1)
  end
end

for _, id in ipairs(due('longcat:leases')) do
  local job = read(id)
  write(job, {token = false})
  local status = put_back(job, true, given.crash_error)
  changed(ENDED[status] and 'ended' or 'requeued', id)
end

for _, id in ipairs(due('longcat:queue_deadlines')) do
  finish(read(id), 'failed', {error = given.overdue_error})
  changed('ended', id)
end

for _, id in ipairs(due('longcat:expiring')) do
  remove(read(id))
  changed('expired', id)
end

return changes
