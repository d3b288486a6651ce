-- include: record
-- The queue. Higher priorities come first. Within a priority, owners share the groups by weighted fair queueing with
-- equal weights (start-time fair queueing): each owner has a virtual start time, which grows by one with each job of
-- theirs that starts, and the owner with the lowest one is next. An owner who had no queued jobs resumes at the current
-- virtual time, so being away earns no credit. Requeued jobs come before all others of their priority, because they
-- were chosen before.

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

local function virtual_time_key(priority)
  return queue_key(priority) .. ':virtual_time'
end

local function virtual_time(priority)
  return tonumber(redis.call('GET', virtual_time_key(priority)) or 0)
end

local function enqueue(job)
  local priority, owner = job.priority, job.owner
  redis.call('ZADD', queue_key(priority), job.number, job.id)
  redis.call('INCRBY', 'longcat:queued_work_units', job.work_units)
  if job.started_ms then
    redis.call('ZADD', requeued_key(priority), job.number, job.id)
    return
  end
  redis.call('ZADD', owner_queue_key(priority, owner), job.number, job.id)
  if not redis.call('ZSCORE', backlogged_key(priority), owner) then
    local start = tonumber(redis.call('ZSCORE', idle_key(priority), owner) or 0)
    redis.call('ZREM', idle_key(priority), owner)
    redis.call('ZADD', backlogged_key(priority), math.max(start, virtual_time(priority)), owner)
  end
end

-- Take a job out of its owner's queue. An owner whose last job this was keeps their virtual start time.
local function leave_owner_queue(job)
  local priority, owner = job.priority, job.owner
  local owner_queue = owner_queue_key(priority, owner)
  if redis.call('ZREM', owner_queue, job.id) == 1 and redis.call('EXISTS', owner_queue) == 0 then
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
  end
  redis.call('ZREM', requeued_key(priority), job.id)
  redis.call('ZREM', SET_ASIDE, job.id)
  leave_owner_queue(job)
end

-- Keep a queued job from a reader that cannot read it. Others claim it like a requeued job, so that it does not hold up
-- the jobs of its owner that come after it.
local function set_aside(job, reader)
  leave_owner_queue(job)
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
  if redis.call('ZSCORE', owner_queue_key(priority, owner), job.id) then
    local start = redis.call('ZINCRBY', backlogged_key(priority), 1, owner) - 1
    local time = math.max(start, virtual_time(priority))
    redis.call('SET', virtual_time_key(priority), time)
    redis.call('ZREMRANGEBYSCORE', idle_key(priority), '-inf', time)
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

-- The id of the first job of the owner with the lowest virtual start time whose job may start. Among owners with the
-- same one, the job that was submitted first wins.
local function next_by_virtual_time(priority)
  local owners = redis.call('ZRANGE', backlogged_key(priority), 0, -1, 'WITHSCORES')
  local best, best_number, best_start
  for i = 1, #owners, 2 do
    local start = tonumber(owners[i + 1])
    if best and start > best_start then break end
    local id, number = unpack(redis.call('ZRANGE', owner_queue_key(priority, owners[i]), 0, 0, 'WITHSCORES'))
    if (not best or tonumber(number) < best_number) and may_start(id) then
      best, best_number, best_start = id, tonumber(number), start
    end
  end
  return best
end

-- The id of the next job, nil if no job may start.
local function next_job()
  for _, priority in ipairs(PRIORITIES) do
    for _, id in ipairs(redis.call('ZRANGE', requeued_key(priority), 0, -1)) do
      if may_start(id) then return id end
    end
    local id = next_by_virtual_time(priority)
    if id then return id end
  end
end

-- How many jobs of the same priority that never started come before this one.
local function num_ahead_by_virtual_time(job)
  local backlogged = backlogged_key(job.priority)
  local rank = redis.call('ZRANK', owner_queue_key(job.priority, job.owner), job.id)
  if not rank then return 0 end -- the record names another owner than the one who submitted it
  local start = redis.call('ZSCORE', backlogged, job.owner) + rank
  local owners = redis.call('ZRANGE', backlogged, '-inf', start, 'BYSCORE', 'WITHSCORES')
  local num_ahead = rank
  for i = 1, #owners, 2 do
    if owners[i] ~= job.owner then
      local rivals = owner_queue_key(job.priority, owners[i])
      local num_earlier = start - owners[i + 1]
      local _, number = unpack(redis.call('ZRANGE', rivals, num_earlier, num_earlier, 'WITHSCORES'))
      num_ahead = num_ahead + math.min(num_earlier, redis.call('ZCARD', rivals))
      if number and tonumber(number) < tonumber(job.number) then num_ahead = num_ahead + 1 end
    end
  end
  return num_ahead
end

-- The position of a queued job if every owner may start jobs; 1 is next.
local function queue_position(job)
  local position = 1
  for _, priority in ipairs(PRIORITIES) do
    if priority == job.priority then break end
    position = position + redis.call('ZCARD', queue_key(priority))
  end
  local requeued = requeued_key(job.priority)
  local rank = redis.call('ZRANK', requeued, job.id)
  if rank then return position + rank end
  return position + redis.call('ZCARD', requeued) + num_ahead_by_virtual_time(job)
end
