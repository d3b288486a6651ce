-- include: classes
-- The queue: put jobs in and take them out. `queue_order` has their order, `classes` the jobs with equal requirements,
-- and `next_job` chooses the next one.

-- Queued jobs that some release could not read, by number.
local SET_ASIDE = 'longcat:queue:set_aside'

local function enqueue(job)
  local priority = job.priority
  redis.call('ZADD', queue_key(priority), job.number, job.id)
  redis.call('INCRBY', 'longcat:queued_work_units', job.work_units)
  local time_ms = effective_time_ms(priority, job.started_ms and now or job.created_ms, job.ageing_ms)
  redis.call('ZADD', effective_times_key(priority), time_ms, job.id)
  if job.started_ms then
    redis.call('ZADD', requeued_key(priority), job.number, job.id)
  else
    enter_owner_queue(job)
  end
  add_to_class(job)
end

-- Take a job out of the queue if it is queued.
local function dequeue(job)
  local priority = job.priority
  redis.call('ZREM', 'longcat:queue_deadlines', job.id)
  if redis.call('ZREM', queue_key(priority), job.id) == 1 then
    redis.call('DECRBY', 'longcat:queued_work_units', job.work_units)
    remove_from_class(job)
  end
  redis.call('ZREM', effective_times_key(priority), job.id)
  redis.call('ZREM', requeued_key(priority), job.id)
  redis.call('ZREM', SET_ASIDE, job.id)
  leave_owner_queue(job)
end

-- Check that the caller, if it is a reader of records, has not set this job aside.
local function is_readable(unreadable_by)
  if not (given.reader and unreadable_by) then return true end
  return not (' ' .. unreadable_by .. ' '):find(' ' .. given.reader .. ' ', 1, true)
end

-- Keep a queued job from a reader that cannot read it. Others find it in a list of its own, so that it does not hold up
-- the jobs that come after it. It has the position of a requeued job.
local function set_aside(job, reader)
  remove_from_owner_jobs(job.priority, job.requirement, job.owner, job.id)
  redis.call('ZREM', class_requeued_key(job.priority, job.requirement), job.id)
  leave_owner_queue(job)
  redis.call('ZADD', requeued_key(job.priority), job.number, job.id)
  redis.call('ZADD', SET_ASIDE, job.number, job.id)
  if is_readable(job.unreadable_by) then
    write(job, {unreadable_by = (job.unreadable_by and job.unreadable_by .. ' ' or '') .. reader})
  end
end

-- Remove a job whose record is gone, and of which nothing else is known, from the queue.
local function dequeue_unknown(id)
  for _, priority in ipairs(PRIORITIES) do
    for _, owner in ipairs(redis.call('ZRANGE', backlogged_key(priority), 0, -1)) do
      leave_owner_queue({id = id, priority = priority, owner = owner})
    end
    dequeue({id = id, priority = priority, owner = '', requirement = '', work_units = 0})
  end
end

-- Take a job out of the queue because it starts. Its owner is charged for a first start, not for a restart. Jobs of the
-- owner that are before it, because the group cannot run them, now start later by its charge.
local function dequeue_to_start(job)
  local priority, owner = job.priority, job.owner
  local owner_queue = owner_queue_key(priority, owner)
  local place = redis.call('ZSCORE', owner_queue, job.id)
  if place then
    local start, by = owner_start(priority, owner), charge(job.work_units, job.weight)
    redis.call('ZINCRBY', backlogged_key(priority), by, owner)
    local rank = redis.call('ZRANK', owner_queue, job.id)
    if rank > 0 then move_in_start_order(priority, owner_queue, 0, by, rank - 1) end
    local time = math.max(start, virtual_time(priority))
    redis.call('SET', virtual_time_key(priority), time)
    redis.call('ZREMRANGEBYSCORE', idle_key(priority), '-inf', time)
    redis.call('ZREM', start_order_key(priority), start_order_member(place, job.id))
  end
  dequeue(job)
end

-- Change an owner's virtual start time because a job of theirs has cost more or less than they were charged. If the
-- virtual time has passed it, nothing remains to be changed.
local function correct_charge(priority, owner, by)
  if owner_start(priority, owner) then
    local start = redis.call('ZINCRBY', backlogged_key(priority), by, owner)
    move_in_start_order(priority, owner_queue_key(priority, owner), 0, by)
    for _, requirement in ipairs(redis.call('SMEMBERS', REQUIREMENTS)) do
      local place = redis.call('ZRANGE', requirement_owner_key(priority, requirement, owner), 0, 0, 'WITHSCORES')[2]
      if place then
        redis.call('ZADD', class_owners_key(priority, requirement), 'XX', start, start_order_member(place, owner))
      end
    end
  elseif redis.call('ZSCORE', idle_key(priority), owner) then
    redis.call('ZINCRBY', idle_key(priority), by, owner)
  end
end

-- If a job with a deadline did not start in time, give it the place of a job without one. Return whether it moved. A
-- script moves so many at most, since each move takes long; the rest keep their places until later scripts move them.
local MOST_LATE = 50
local num_moved = 0
local function move_if_late(id, start_by_ms)
  if tonumber(start_by_ms) >= now or num_moved == MOST_LATE then return false end
  redis.call('ZREM', START_BY, id)
  local job = read(id)
  local owner_queue = job and owner_queue_key(job.priority, job.owner)
  if not (job and whole_number(job.start_by_ms) and redis.call('ZSCORE', owner_queue, id)) then return false end
  remove_from_owner_jobs(job.priority, job.requirement, job.owner, id)
  leave_start_order(job.priority, owner_queue, job)
  redis.call('ZREM', owner_queue, id)
  write(job, {start_by_ms = false})
  enter_at_place(job)
  add_to_owner_jobs(job)
  num_moved = num_moved + 1
  return true
end

-- Move the jobs that did not start in time.
local function move_late_jobs()
  local before_now = string.format('(%.0f', now)
  local late = redis.call('ZRANGE', START_BY, '-inf', before_now, 'BYSCORE', 'LIMIT', 0, MOST_LATE, 'WITHSCORES')
  for i = 1, #late, 2 do move_if_late(late[i], late[i + 1]) end
end
