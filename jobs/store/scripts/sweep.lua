-- include: transitions, allow_when_full
-- Handle leases, queue deadlines and retentions that ran out. Return the time, and pairs of the change and the job, or
-- false if another process swept a moment ago: one process sweeps for all, and another one takes over when it stops.
do
  local SWEEPER = 'longcat:sweeper'
  local TERM_MS = 1000
  -- By the server's clock as it is: if it steps, the next process that tries takes over.
  local clock_ms = server_ms or now
  local sweeper, swept_ms = unpack(redis.call('HMGET', SWEEPER, 'token', 'swept_ms'))
  local is_recent = swept_ms and tonumber(swept_ms) <= clock_ms and clock_ms < swept_ms + TERM_MS
  if is_recent and sweeper ~= given.token then return {now - missed_ms, false} end
  redis.call('HSET', SWEEPER, 'token', given.token, 'swept_ms', clock_ms)
end

local changes = {}

local function add_change(change, id)
  table.insert(changes, {change, id})
end

store_clock()

-- While nobody swept, Redis was away and holders could not renew their leases: they get one more lease as grace. Only
-- one, so that leases run out also where sweeps are rare. No lease lasts longer than its length from now, whatever the
-- clock showed when it was renewed.
local last_sweep = tonumber(redis.call('GET', 'longcat:last_sweep') or now)
redis.call('SET', 'longcat:last_sweep', now)

if missed_ms > 0 then
  for _, id in ipairs(redis.call('ZRANGE', 'longcat:leases', 0, -1)) do
    redis.call('ZINCRBY', 'longcat:leases', missed_ms, id)
  end
end

-- The end and the length of the first (rank 0) or the last (rank -1) lease; nil if there is none.
local function lease_at(rank)
  local id, ends_ms = unpack(redis.call('ZRANGE', 'longcat:leases', rank, rank, 'WITHSCORES'))
  if not id then return nil end
  local lease_ms = read_fields(id, 'lease_ms')[1]
  return tonumber(ends_ms), whole_number(lease_ms) or NUMBERS.lease_ms
end

local function extend_or_shorten_leases()
  local leases = redis.call('ZRANGE', 'longcat:leases', 0, -1, 'WITHSCORES')
  for i = 1, #leases, 2 do
    local id, ends_ms = leases[i], tonumber(leases[i + 1])
    local status, lease_ms, had_grace = unpack(read_fields(id, 'status', 'lease_ms', 'lease_grace'))
    lease_ms = whole_number(lease_ms) or NUMBERS.lease_ms
    if status and now - last_sweep > lease_ms / 3 and not had_grace then
      redis.call('ZADD', 'longcat:leases', now + lease_ms, id)
      redis.call('HSET', record_key(id), 'lease_grace', 1)
    elseif ends_ms > now + lease_ms then
      redis.call('ZADD', 'longcat:leases', now + lease_ms, id)
    end
  end
end

-- Reading all leases takes time, so it is done only if the first or the last one shows a need.
do
  local _, first_lease_ms = lease_at(0)
  local last_ends_ms, last_lease_ms = lease_at(-1)
  local is_late = first_lease_ms and now - last_sweep > math.min(3000, first_lease_ms / 3)
  if is_late or first_lease_ms and last_ends_ms > now + last_lease_ms then extend_or_shorten_leases() end
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

-- Keys that release 0.3.0 writes for the release before it.
redis.call('DEL', 'longcat:capability', 'longcat:queue:checked')

release_long_held_back()
move_late_jobs()

return {now, changes}
