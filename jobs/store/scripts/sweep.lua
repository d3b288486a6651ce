-- include: transitions, allow_when_full
-- Handle leases, queue deadlines and retentions that ran out. Return pairs of the change and the job.
local changes = {}

local function add_change(change, id)
  table.insert(changes, {change, id})
end

-- While nobody swept, Redis was away and holders could not renew their leases: they get one more lease as grace. Only
-- one, so that leases run out also where sweeps are rare.
-- A lease never ends later than after its length, whatever the clock showed when it was renewed.
store_clock()
local last_sweep = tonumber(redis.call('GET', 'longcat:last_sweep') or now)
redis.call('SET', 'longcat:last_sweep', now)
local leases = redis.call('ZRANGE', 'longcat:leases', 0, -1, 'WITHSCORES')
for i = 1, #leases, 2 do
  local id, ends_ms = leases[i], tonumber(leases[i + 1])
  local status, lease_ms, had_grace = unpack(read_fields(id, 'status', 'lease_ms', 'lease_grace'))
  if not is_whole(lease_ms) then lease_ms = NUMBERS.lease_ms end
  if status and now - last_sweep > lease_ms / 3 and not had_grace then
    redis.call('ZADD', 'longcat:leases', now + lease_ms, id)
    redis.call('HSET', record_key(id), 'lease_grace', 1)
  elseif ends_ms > now + lease_ms then
    redis.call('ZADD', 'longcat:leases', now + lease_ms, id)
  end
end

-- Jobs of a sorted set whose time has come.
local function due_jobs(key)
  local jobs = {}
  for _, id in ipairs(due(key)) do
    local job = read(id)
    if job then table.insert(jobs, job) else forget(id) end
  end
  return jobs
end

for _, job in ipairs(due_jobs('longcat:leases')) do
  write(job, {claim_token = false})
  local status = requeue(job, 'crashed', given.crash_error)
  add_change(ENDED[status] and 'ended' or 'requeued', job.id)
end

for _, job in ipairs(due_jobs('longcat:queue_deadlines')) do
  finish(job, 'failed', {error = given.overdue_error})
  add_change('ended', job.id)
end

for _, job in ipairs(due_jobs('longcat:expiring')) do
  remove(job)
  add_change('expired', job.id)
end

return changes
