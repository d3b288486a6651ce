-- include: record
-- The queue. Higher priorities come first. Within a priority, owners share the groups by weighted fair queueing with
-- equal weights (start-time fair queueing): each owner has a virtual start time, which grows by one with each job of
-- theirs that starts, and the owner with the lowest one is next. An owner who had no queued jobs resumes at the current
-- virtual time, so being away earns no credit. Requeued jobs come before all others of their priority, because they
-- were chosen before.
--
-- Each queued job is also listed under its requirement, so that a group finds the jobs that it can run without passing
-- over others. Processes of release 0.2.0 do not know these lists: what they submit is added by `set_requirement`, and
-- what they take out of the queue is removed by `first_with_requirement`.

-- Queued jobs that some release could not read, by number.
local SET_ASIDE = 'longcat:queue:set_aside'

local function queue_key(priority)
  return 'longcat:queue:' .. priority
end

-- Jobs of one owner that never started.
local function owner_queue_key(priority, owner)
  return queue_key(priority) .. ':owner:' .. owner
end

-- Owners with such jobs, by virtual start time.
local function backlogged_key(priority)
  return queue_key(priority) .. ':backlogged'
end

-- Owners without such jobs whose virtual start time is still ahead of the virtual time.
local function idle_key(priority)
  return queue_key(priority) .. ':idle'
end

local function requeued_key(priority)
  return queue_key(priority) .. ':requeued'
end

-- Jobs that never started, in the order in which they start if no limit on running jobs applies: by virtual start time,
-- then by number. Only positions are read from it: with any number of owners, a position takes the same few commands.
-- A job's virtual start time is that of its owner plus the number of the owner's jobs before it.
local function start_order_key(priority)
  return queue_key(priority) .. ':start_order'
end

-- Members with equal scores are in lexicographic order, so the number comes first, with leading zeros.
local function start_order_member(number, id)
  return string.format('%015d:%s', number, id)
end

local function virtual_time_key(priority)
  return queue_key(priority) .. ':virtual_time'
end

local REQUIREMENTS = 'longcat:requirements'

-- Queued jobs of all owners with this requirement.
local function requirement_key(priority, requirement)
  return queue_key(priority) .. ':requirement:' .. requirement
end

-- Jobs of one owner with this requirement that never started.
local function requirement_owner_key(priority, requirement, owner)
  return requirement_key(priority, requirement) .. ':owner:' .. owner
end

local function list_by_requirement(job)
  redis.call('SADD', REQUIREMENTS, job.requirement)
  redis.call('ZADD', requirement_key(job.priority, job.requirement), job.number, job.id)
  if not job.started_ms then
    redis.call('ZADD', requirement_owner_key(job.priority, job.requirement, job.owner), job.number, job.id)
  end
end

local function unlist_by_requirement(job)
  redis.call('ZREM', requirement_owner_key(job.priority, job.requirement, job.owner), job.id)
  redis.call('ZREM', requirement_key(job.priority, job.requirement), job.id)
  for _, priority in ipairs(PRIORITIES) do
    if redis.call('EXISTS', requirement_key(priority, job.requirement)) == 1 then return end
  end
  redis.call('SREM', REQUIREMENTS, job.requirement)
end

local function virtual_time(priority)
  return tonumber(redis.call('GET', virtual_time_key(priority)) or 0)
end

local function enqueue(job)
  local priority, owner = job.priority, job.owner
  redis.call('ZADD', queue_key(priority), job.number, job.id)
  redis.call('INCRBY', 'longcat:queued_work_units', job.work_units)
  if job.requirement then list_by_requirement(job) end
  if job.started_ms then
    redis.call('ZADD', requeued_key(priority), job.number, job.id)
    return
  end
  if not redis.call('ZSCORE', backlogged_key(priority), owner) then
    local start = tonumber(redis.call('ZSCORE', idle_key(priority), owner) or 0)
    redis.call('ZREM', idle_key(priority), owner)
    redis.call('ZADD', backlogged_key(priority), math.max(start, virtual_time(priority)), owner)
  end
  local num_before = redis.call('ZCARD', owner_queue_key(priority, owner))
  local start = redis.call('ZSCORE', backlogged_key(priority), owner) + num_before
  redis.call('ZADD', owner_queue_key(priority, owner), job.number, job.id)
  redis.call('ZADD', start_order_key(priority), start, start_order_member(job.number, job.id))
end

-- Take a job of an owner's queue out of the start order. If it does not start, the owner's later jobs move up.
local function leave_start_order(priority, owner_queue, id)
  local order = start_order_key(priority)
  local member = start_order_member(redis.call('ZSCORE', owner_queue, id), id)
  if redis.call('ZREM', order, member) == 0 then return end
  local later = redis.call('ZRANGE', owner_queue, redis.call('ZRANK', owner_queue, id) + 1, -1, 'WITHSCORES')
  for i = 1, #later, 2 do
    redis.call('ZADD', order, 'XX', 'INCR', -1, start_order_member(later[i + 1], later[i]))
  end
end

-- Take a job out of its owner's queue. An owner whose last job this was keeps their virtual start time.
local function leave_owner_queue(job)
  local priority, owner = job.priority, job.owner
  local owner_queue = owner_queue_key(priority, owner)
  if not redis.call('ZSCORE', owner_queue, job.id) then return end
  leave_start_order(priority, owner_queue, job.id)
  redis.call('ZREM', owner_queue, job.id)
  if redis.call('EXISTS', owner_queue) == 0 then
    redis.call('ZADD', idle_key(priority), redis.call('ZSCORE', backlogged_key(priority), owner), owner)
    redis.call('ZREM', backlogged_key(priority), owner)
  end
end

-- Take a job out of the queue if it is queued.
local function dequeue(job)
  local priority = job.priority
  redis.call('ZREM', 'longcat:queue_deadlines', job.id)
  if redis.call('ZREM', queue_key(priority), job.id) == 1 then
    redis.call('DECRBY', 'longcat:queued_work_units', job.work_units)
    if job.requirement then unlist_by_requirement(job) end
  end
  redis.call('ZREM', requeued_key(priority), job.id)
  redis.call('ZREM', SET_ASIDE, job.id)
  leave_owner_queue(job)
end

-- Keep a queued job from a reader that cannot read it. Others claim it like a requeued job, so that it does not hold up
-- the jobs of its owner that come after it.
local function set_aside(job, reader)
  leave_owner_queue(job)
  if job.requirement then
    redis.call('ZREM', requirement_owner_key(job.priority, job.requirement, job.owner), job.id)
  end
  redis.call('ZADD', requeued_key(job.priority), job.number, job.id)
  redis.call('ZADD', SET_ASIDE, job.number, job.id)
  write(job, {unreadable_by = (job.unreadable_by and job.unreadable_by .. ' ' or '') .. reader})
end

-- Remove a job whose record is gone, and of which nothing else is known, from the queue.
local function dequeue_unknown(id)
  for _, priority in ipairs(PRIORITIES) do
    for _, owner in ipairs(redis.call('ZRANGE', backlogged_key(priority), 0, -1)) do
      leave_owner_queue({id = id, priority = priority, owner = owner})
    end
    dequeue({id = id, priority = priority, owner = '', work_units = 0})
  end
end

-- Take a job out of the queue because it starts. Its owner is charged for a first start, not for a restart.
local function dequeue_to_start(job)
  local priority, owner = job.priority, job.owner
  local number = redis.call('ZSCORE', owner_queue_key(priority, owner), job.id)
  if number then
    local start = redis.call('ZINCRBY', backlogged_key(priority), 1, owner) - 1
    local time = math.max(start, virtual_time(priority))
    redis.call('SET', virtual_time_key(priority), time)
    redis.call('ZREMRANGEBYSCORE', idle_key(priority), '-inf', time)
    redis.call('ZREM', start_order_key(priority), start_order_member(number, job.id))
  end
  dequeue(job)
end

-- Check that the caller, if it is a reader of records, has not set this job aside.
local function is_readable(unreadable_by)
  if not (given.reader and unreadable_by) then return true end
  return not (' ' .. unreadable_by .. ' '):find(' ' .. given.reader .. ' ', 1, true)
end

-- Check that a queued job may start under the limits on running jobs, which it carries. If `leaving` is given, that
-- running job is about to stop and does not count. A job without a record may: whoever claims it finds out.
local function may_start(id, leaving)
  local owner, owner_limit, total_limit, unreadable_by = unpack(
    read_fields(id, 'owner', 'owner_running_jobs', 'total_running_jobs', 'unreadable_by')
  )
  if not owner then return true end
  if not is_readable(unreadable_by) then return false end
  local running = index_keys('running', owner)
  local num_leaving = leaving and 1 or 0
  local num_leaving_of_owner = leaving and leaving.owner == owner and 1 or 0
  return not (total_limit and redis.call('ZCARD', running[1]) - num_leaving >= tonumber(total_limit))
    and not (owner_limit and redis.call('ZCARD', running[2]) - num_leaving_of_owner >= tonumber(owner_limit))
end

-- The id and number of an owner's first job with this requirement that never started.
local function first_with_requirement(priority, requirement, owner)
  local key = requirement_owner_key(priority, requirement, owner)
  while true do
    local id, number = unpack(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES'))
    if not id then return nil end
    if redis.call('ZSCORE', owner_queue_key(priority, owner), id) then return id, tonumber(number) end
    redis.call('ZREM', key, id)
    redis.call('ZREM', requirement_key(priority, requirement), id)
  end
end

-- The id of the first job of the owner with the lowest virtual start time whose job may start. Among owners with the
-- same one, the job that was submitted first wins.
local function next_by_virtual_time(priority, requirements)
  local owners = redis.call('ZRANGE', backlogged_key(priority), 0, -1, 'WITHSCORES')
  local best, best_number, best_start
  for i = 1, #owners, 2 do
    local start = tonumber(owners[i + 1])
    if best and start > best_start then break end
    for _, requirement in ipairs(requirements) do
      local id, number = first_with_requirement(priority, requirement, owners[i])
      if id and (not best or number < best_number) and may_start(id) then
        best, best_number, best_start = id, number, start
      end
    end
  end
  return best
end

-- The number of queued jobs of one priority with this requirement, and the id of the first one.
local function depth_of(priority, requirement)
  local key = requirement_key(priority, requirement)
  while true do
    local id = redis.call('ZRANGE', key, 0, 0)[1]
    if not id or redis.call('ZSCORE', queue_key(priority), id) then return redis.call('ZCARD', key), id end
    redis.call('ZREM', key, id)
  end
end

-- The requirements as a set, and a check that a queued job has one of them. A job that a process of release 0.2.0
-- requeued may have none: any group may run it.
local function as_set(requirements)
  local set = {}
  for _, requirement in ipairs(requirements) do set[requirement] = true end
  return set
end

local function has_requirement_in(set, id)
  local requirement = read_fields(id, 'requirement')[1]
  return not requirement or set[requirement] or false
end

-- The id of the next job with one of these requirements, nil if none may start. Without requirements, the next of all.
local function next_job(requirements)
  requirements = requirements or redis.call('SMEMBERS', REQUIREMENTS)
  local set = as_set(requirements)
  for _, priority in ipairs(PRIORITIES) do
    for _, id in ipairs(redis.call('ZRANGE', requeued_key(priority), 0, -1)) do
      if has_requirement_in(set, id) and may_start(id) then return id end
    end
    local id = next_by_virtual_time(priority, requirements)
    if id then return id end
  end
end

-- The number of queued jobs of the priorities above this one.
local function num_of_higher_priority(priority)
  local num_ahead = 0
  for _, higher in ipairs(PRIORITIES) do
    if higher == priority then break end
    num_ahead = num_ahead + redis.call('ZCARD', queue_key(higher))
  end
  return num_ahead
end

-- The position of a queued job among those of its priority if every owner may start jobs; 1 is next.
local function position_in_priority(id, priority)
  local requeued = requeued_key(priority)
  local rank = redis.call('ZRANK', requeued, id)
  if rank then return rank + 1 end
  local number = redis.call('ZSCORE', queue_key(priority), id)
  if not number then return 1 end -- the record names another priority than the one with which it was submitted
  rank = redis.call('ZRANK', start_order_key(priority), start_order_member(number, id))
  if rank then return redis.call('ZCARD', requeued) + rank + 1 end
  -- Release 0.2.0 has queued it and no sweep has repaired the order yet: give its place by submission.
  return redis.call('ZRANK', queue_key(priority), id) + 1
end

-- Build the start order again if its size is wrong. Scripts of release 0.2.0 do not keep it.
local function repair_start_order(priority)
  local order = start_order_key(priority)
  local num_expected = redis.call('ZCARD', queue_key(priority)) - redis.call('ZCARD', requeued_key(priority))
  if redis.call('ZCARD', order) == num_expected then return end
  redis.call('DEL', order)
  local owners = redis.call('ZRANGE', backlogged_key(priority), 0, -1, 'WITHSCORES')
  for i = 1, #owners, 2 do
    local jobs = redis.call('ZRANGE', owner_queue_key(priority, owners[i]), 0, -1, 'WITHSCORES')
    for j = 1, #jobs, 2 do
      redis.call('ZADD', order, owners[i + 1] + (j - 1) / 2, start_order_member(jobs[j + 1], jobs[j]))
    end
  end
end
