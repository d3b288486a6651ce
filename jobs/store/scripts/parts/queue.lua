-- include: record
-- The queue. Higher priorities come first, unless a job of a lower one has waited much longer (`effective_time_ms`).
-- Within a priority, owners share the groups by weighted fair queueing (start-time fair queueing). Each owner has a
-- virtual start time. It grows with each job of theirs that starts, by the work of the job divided by its `weight`, and
-- is corrected when the job has ended and its GPU time is known. The owner with the lowest one is next. An owner who
-- had no queued jobs resumes at the current virtual time, so being away earns no credit. Requeued jobs come before all
-- others of their priority, because they were chosen before.
--
-- The jobs of one owner start in the order of their places. The place of a job is the time by which it should start:
-- its deadline less the time that it is expected to run, or, without a deadline, `default_deadline_ms` after its
-- submission. So jobs without deadlines start in the order of submission, also if the clock goes back. A job that would
-- be late even if it started at once, or that did not start in time, has the place of a job without a deadline: it does
-- not keep others from meeting theirs, and does not wait for ever.
--
-- Jobs with equal requirements are a class, so that a group finds the jobs that it can run without passing over others.
-- A class has its own order of owners and of requeued jobs, so a claim looks at the first entry of each class only. The
-- entries of owners are checked when they are looked at: the virtual start time of an owner grows with the jobs of all
-- classes, so an entry may be too low, but never too high. When it falls, all entries of the owner are changed.
--
-- An entry that a limit on running jobs of its owner keeps from starting is held back: it leaves its class until a job
-- of that owner stops running.
--
-- Processes of release 0.2.0 do not know the classes, and use the number of a job as its place, which is lower than
-- that of any job of this release. What they submit is added by `set_requirement`, what they requeue by `repair_queue`,
-- and what they take out of the queue is removed when it is found in a class, as are jobs whose record is gone.

-- Queued jobs that some release could not read, by number.
local SET_ASIDE = 'longcat:queue:set_aside'

local function queue_key(priority)
  return 'longcat:queue:' .. priority
end

-- Jobs of one owner that never started, by place.
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
-- then by place. Only positions are read from it: with any number of owners, a position takes the same few commands.
-- A job's virtual start time is that of its owner plus the charges for the owner's jobs before it. After a cancellation
-- it is an estimate (`leave_start_order`).
local function start_order_key(priority)
  return queue_key(priority) .. ':start_order'
end

-- Members with equal scores are in lexicographic order, so the place comes first, with leading zeros.
local function start_order_member(place, id)
  return string.format('%016d:%s', place, id)
end

-- The name in such a member.
local function name_of_entry(entry)
  return entry:sub(18)
end

-- The submission of the last of an owner's queued jobs in µs, by owner. The µs come from the number of the job, so that
-- those of one millisecond keep their order. When the last three digits of the number begin again, or the clock goes
-- back, a job counts as submitted just after the job before it.
local function last_submission_key(priority)
  return queue_key(priority) .. ':last_submission'
end

local US_PER_MS = 1000

-- Set how much later than at `created_ms` a new job counts as submitted, in µs.
-- The last submission counts only while the owner has queued jobs: scripts of release 0.2.0 leave it behind.
local function set_submission_delay(job)
  local is_backlogged = redis.call('ZSCORE', backlogged_key(job.priority), job.owner)
  local last_us = is_backlogged and redis.call('HGET', last_submission_key(job.priority), job.owner) or 0
  job.submission_delay_us = math.max(job.number % US_PER_MS, last_us + 1 - job.created_ms * US_PER_MS)
end

local function submission_us(job)
  return job.created_ms * US_PER_MS + (is_whole(tostring(job.submission_delay_us)) or 0)
end

-- The place of a job among those of its owner, in µs.
local DEFAULT_DEADLINE_MS = 3600000 -- for records without one
local function place_of(job)
  local start_by_ms = is_whole(tostring(job.start_by_ms))
  if not start_by_ms then
    return submission_us(job) + (is_whole(tostring(job.default_deadline_ms)) or DEFAULT_DEADLINE_MS) * US_PER_MS
  end
  local place = start_by_ms * US_PER_MS + job.number % US_PER_MS
  local end_of_ms = string.format('(%.0f', (start_by_ms + 1) * US_PER_MS)
  local later = redis.call(
    'ZRANGE', owner_queue_key(job.priority, job.owner), end_of_ms, place, 'BYSCORE', 'REV', 'LIMIT', 0, 1, 'WITHSCORES'
  )
  return later[2] and later[2] + 1 or place
end

-- Jobs that never started and may still meet their deadlines, by the time by which they should start.
local START_BY = 'longcat:queue:start_by'

local function virtual_time_key(priority)
  return queue_key(priority) .. ':virtual_time'
end

local REQUIREMENTS = 'longcat:requirements'

-- Queued jobs of all owners with this requirement.
local function requirement_key(priority, requirement)
  return queue_key(priority) .. ':requirement:' .. requirement
end

-- The work units of the queued jobs of one priority, by requirement.
local function class_work_units_key(priority)
  return queue_key(priority) .. ':work_units'
end

-- Turn the deadline of a new job, in ms from its submission, into times.
local function set_deadline(job)
  if not job.deadline_ms then return end
  job.deadline_ms = job.created_ms + job.deadline_ms
  local start_by_ms = job.deadline_ms - (job.expected_run_ms or 0)
  if start_by_ms >= job.created_ms then job.start_by_ms = start_by_ms end
end

-- Jobs of one owner with this requirement that never started, by place.
local function requirement_owner_key(priority, requirement, owner)
  return requirement_key(priority, requirement) .. ':owner:' .. owner
end

-- Owners with such jobs, as `<place of the first one>:<owner>` by virtual start time.
local function class_owners_key(priority, requirement)
  return requirement_key(priority, requirement) .. ':owners'
end

-- Requeued jobs with this requirement, by number.
local function class_requeued_key(priority, requirement)
  return requirement_key(priority, requirement) .. ':requeued'
end

-- Owners with entries that are held back, by the latest time of their release; and the entries of one owner.
local HELD_BACK = 'longcat:queue:held_back'
local function held_back_key(owner)
  return HELD_BACK .. ':' .. owner
end

-- How far the virtual start time of its owner grows when a job starts. Charges are whole numbers, so that sums of them
-- are exact.
local UNITS_PER_CHARGE = 1000
local function charge(work_units, weight)
  weight = tonumber(weight or 1) or 1
  if not (weight > 0) then weight = 1 end
  return math.max(1, math.floor(work_units / UNITS_PER_CHARGE / weight + 0.5))
end

local function virtual_time(priority)
  return tonumber(redis.call('GET', virtual_time_key(priority)) or 0)
end

local function owner_start(priority, owner)
  return tonumber(redis.call('ZSCORE', backlogged_key(priority), owner))
end

-- Enter an owner into a class with their first job there.
local function enter_class(priority, requirement, owner)
  local first, place = unpack(
    redis.call('ZRANGE', requirement_owner_key(priority, requirement, owner), 0, 0, 'WITHSCORES')
  )
  local start = first and owner_start(priority, owner)
  if start then
    redis.call('ZADD', class_owners_key(priority, requirement), start, start_order_member(place, owner))
  end
end

-- Add a job that never started to those of its owner in a class.
local function list_by_place(job)
  local priority, requirement, owner = job.priority, job.requirement, job.owner
  local owner_jobs = requirement_owner_key(priority, requirement, owner)
  local place = redis.call('ZSCORE', owner_queue_key(priority, owner), job.id) or place_of(job)
  local first, first_place = unpack(redis.call('ZRANGE', owner_jobs, 0, 0, 'WITHSCORES'))
  redis.call('ZADD', owner_jobs, place, job.id)
  if not first then
    enter_class(priority, requirement, owner)
  elseif tonumber(place) < tonumber(first_place) then
    local entry = start_order_member(first_place, owner)
    if redis.call('ZREM', class_owners_key(priority, requirement), entry) == 1 then -- it is not held back
      enter_class(priority, requirement, owner)
    end
  end
end

local function list_by_requirement(job)
  local priority, requirement = job.priority, job.requirement
  redis.call('SADD', REQUIREMENTS, requirement)
  if redis.call('ZADD', requirement_key(priority, requirement), job.number, job.id) == 1 then
    redis.call('HINCRBY', class_work_units_key(priority), requirement, job.work_units)
  end
  if job.started_ms then
    redis.call('ZADD', class_requeued_key(priority, requirement), job.number, job.id)
  else
    list_by_place(job)
  end
end

-- Take a job that never started out of its owner's jobs in a class. The next of them takes the place of the first.
local function leave_class(priority, requirement, owner, id)
  local owner_jobs = requirement_owner_key(priority, requirement, owner)
  local first, place = unpack(redis.call('ZRANGE', owner_jobs, 0, 0, 'WITHSCORES'))
  redis.call('ZREM', owner_jobs, id)
  if first ~= id then return end
  local entry = start_order_member(place, owner)
  if redis.call('ZREM', class_owners_key(priority, requirement), entry) == 1 then
    enter_class(priority, requirement, owner)
  end
end

-- Remove a job from those with a requirement. The work units of a class begin at 0 again when it is empty: those of a
-- job whose record was removed in the meantime are not known.
local function remove_from_class(priority, requirement, id)
  if redis.call('ZREM', requirement_key(priority, requirement), id) == 0 then return end
  if redis.call('EXISTS', requirement_key(priority, requirement)) == 0 then
    redis.call('HDEL', class_work_units_key(priority), requirement)
  else
    local work_units = read_fields(id, 'work_units')[1]
    if not is_whole(work_units) then work_units = NUMBERS.work_units end
    redis.call('HINCRBY', class_work_units_key(priority), requirement, -work_units)
  end
end

local function unlist_by_requirement(job)
  local requirement = job.requirement
  leave_class(job.priority, requirement, job.owner, job.id)
  redis.call('ZREM', class_requeued_key(job.priority, requirement), job.id)
  remove_from_class(job.priority, requirement, job.id)
  local is_empty = true
  for _, priority in ipairs(PRIORITIES) do
    if redis.call('EXISTS', requirement_key(priority, requirement)) == 1 then
      is_empty = false
    else
      redis.call('DEL', class_owners_key(priority, requirement), class_requeued_key(priority, requirement))
    end
  end
  if is_empty then redis.call('SREM', REQUIREMENTS, requirement) end
end

-- Move an owner's jobs in the start order, from that with this rank in the owner's queue, up to `last_rank` if given: a
-- hundred of them, so that it takes no longer in a long queue than in a short one.
local MOST_MOVED = 100
local function move_in_start_order(priority, owner_queue, first_rank, by, last_rank)
  last_rank = math.min(last_rank or math.huge, first_rank + MOST_MOVED - 1)
  local jobs = redis.call('ZRANGE', owner_queue, first_rank, last_rank, 'WITHSCORES')
  if #jobs == 0 then return end
  local members, moved = {}, {}
  for i = 1, #jobs, 2 do members[#members + 1] = start_order_member(jobs[i + 1], jobs[i]) end
  for i, start in ipairs(redis.call('ZMSCORE', start_order_key(priority), unpack(members))) do
    if start then
      moved[#moved + 1] = start + by
      moved[#moved + 1] = members[i]
    end
  end
  if #moved > 0 then redis.call('ZADD', start_order_key(priority), unpack(moved)) end
end

-- The virtual start time of an owner's job, if none of their jobs is before it.
local function first_start(priority, owner)
  local idle_start = tonumber(redis.call('ZSCORE', idle_key(priority), owner) or 0)
  return owner_start(priority, owner) or math.max(idle_start, virtual_time(priority))
end

-- The virtual start time of a job of an owner at this place, and its rank in the owner's queue if jobs are behind it.
local function start_at(priority, owner, place)
  local owner_queue = owner_queue_key(priority, owner)
  local id, before = unpack(redis.call('ZRANGE', owner_queue, -1, -1, 'WITHSCORES'))
  local rank
  if id and tonumber(before) > place then
    rank = redis.call('ZCOUNT', owner_queue, '-inf', string.format('(%d', place))
    if rank == 0 then return first_start(priority, owner), rank end
    id, before = unpack(redis.call('ZRANGE', owner_queue, rank - 1, rank - 1, 'WITHSCORES'))
  end
  local start = id and redis.call('ZSCORE', start_order_key(priority), start_order_member(before, id))
  if not start then return first_start(priority, owner), rank end
  local work_units, weight = unpack(read_fields(id, 'work_units', 'weight'))
  return start + charge(is_whole(work_units) or NUMBERS.work_units, weight), rank
end

-- Put a job into the queue of its owner, who is backlogged.
local function enter_at_place(job)
  local priority, owner = job.priority, job.owner
  local place = place_of(job)
  local start, rank = start_at(priority, owner, place)
  redis.call('ZADD', owner_queue_key(priority, owner), place, job.id)
  redis.call('ZADD', start_order_key(priority), start, start_order_member(place, job.id))
  if rank then
    move_in_start_order(priority, owner_queue_key(priority, owner), rank + 1, charge(job.work_units, job.weight))
  end
end

-- Put a job that never started into the queue of its owner.
local function enter_owner_queue(job)
  local priority, owner = job.priority, job.owner
  if not redis.call('ZSCORE', backlogged_key(priority), owner) then
    redis.call('ZADD', backlogged_key(priority), first_start(priority, owner), owner)
    redis.call('ZREM', idle_key(priority), owner)
  end
  redis.call('HSET', last_submission_key(priority), owner, submission_us(job))
  if job.start_by_ms then redis.call('ZADD', START_BY, job.start_by_ms, job.id) end
  enter_at_place(job)
end

-- Queued jobs, by effective time: when a job was queued last, later by its `ageing_ms` for each priority above its own.
-- The first job of a priority starts before that of a higher one if this is lower. So jobs of low priority start
-- although there are always jobs of high priority, and the order of two jobs never changes while they wait.
local function effective_times_key(priority)
  return queue_key(priority) .. ':effective_times'
end

local NUM_ABOVE = {high = 0, normal = 1, low = 2}
local STRICT_MS = 1e14 -- for jobs without `ageing_ms`
local function effective_time_ms(priority, queued_since_ms, ageing_ms)
  return queued_since_ms + NUM_ABOVE[priority] * (is_whole(tostring(ageing_ms)) or STRICT_MS)
end

local function enqueue(job)
  local priority = job.priority
  redis.call('ZADD', queue_key(priority), job.number, job.id)
  redis.call('INCRBY', 'longcat:queued_work_units', job.work_units)
  local time_ms = effective_time_ms(priority, job.started_ms and now or job.created_ms, job.ageing_ms)
  redis.call('ZADD', effective_times_key(priority), time_ms, job.id)
  if job.started_ms then
    if not job.requirement then write(job, {requirement = ''}) end -- release 0.2.0 submitted it
    redis.call('ZADD', requeued_key(priority), job.number, job.id)
    list_by_requirement(job)
    return
  end
  enter_owner_queue(job)
  if job.requirement then list_by_requirement(job) end
end

-- Take a job out of the start order because it does not start. The owner's later jobs move up.
local function leave_start_order(priority, owner_queue, job)
  local order = start_order_key(priority)
  local member = start_order_member(redis.call('ZSCORE', owner_queue, job.id), job.id)
  if redis.call('ZREM', order, member) == 0 then return end
  local rank = redis.call('ZRANK', owner_queue, job.id)
  move_in_start_order(priority, owner_queue, rank + 1, -charge(job.work_units or NUMBERS.work_units, job.weight))
end

-- Take a job out of its owner's queue. An owner whose last job this was keeps their virtual start time.
local function leave_owner_queue(job)
  local priority, owner = job.priority, job.owner
  local owner_queue = owner_queue_key(priority, owner)
  if not redis.call('ZSCORE', owner_queue, job.id) then return end
  leave_start_order(priority, owner_queue, job)
  redis.call('ZREM', owner_queue, job.id)
  redis.call('ZREM', START_BY, job.id)
  if redis.call('EXISTS', owner_queue) == 0 then
    redis.call('HDEL', last_submission_key(priority), owner)
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
-- the jobs that come after it. For release 0.2.0 it is a requeued job, too.
local function set_aside(job, reader)
  if job.requirement then
    leave_class(job.priority, job.requirement, job.owner, job.id)
    redis.call('ZREM', class_requeued_key(job.priority, job.requirement), job.id)
  end
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
    dequeue({id = id, priority = priority, owner = '', work_units = 0})
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

-- The limit on running jobs that keeps a queued job from starting, `owner` or `total`; nil if it may start. Jobs carry
-- the limits. If `leaving` is given, that running job is about to stop and does not count. A job without a record may
-- start: whoever claims it finds out.
local function limit_on_start(id, leaving)
  local owner, owner_limit, total_limit = unpack(read_fields(id, 'owner', 'owner_running_jobs', 'total_running_jobs'))
  if not owner then return nil end
  local running = index_keys('running', owner)
  local num_leaving = leaving and 1 or 0
  local num_leaving_of_owner = leaving and leaving.owner == owner and 1 or 0
  local function is_reached(limit, key, num_not_counted)
    return is_whole(limit) and has_at_least(tonumber(limit) + num_not_counted, key)
  end
  if is_reached(total_limit, running[1], num_leaving) then return 'total' end
  if is_reached(owner_limit, running[2], num_leaving_of_owner) then return 'owner' end
end

-- Remember that an entry has left its class: a requeued job, or an owner if there is no `id`.
local LONGEST_HELD_BACK_MS = 5000
local function hold_back(priority, requirement, owner, id)
  redis.call('SADD', held_back_key(owner), cjson.encode({priority, requirement, id}))
  redis.call('ZADD', HELD_BACK, 'NX', now + LONGEST_HELD_BACK_MS, owner)
end

-- Return the entries of an owner to their classes.
local function release_held_back(owner)
  local entries = redis.call('SMEMBERS', held_back_key(owner))
  for _, entry in ipairs(entries) do
    local priority, requirement, id = unpack(cjson.decode(entry))
    if not id then
      enter_class(priority, requirement, owner)
    else
      local number = redis.call('ZSCORE', requirement_key(priority, requirement), id)
      if number then redis.call('ZADD', class_requeued_key(priority, requirement), number, id) end
    end
  end
  redis.call('DEL', held_back_key(owner))
  redis.call('ZREM', HELD_BACK, owner)
end

-- Return entries to their classes that have been held back for long. A job that stops does not return them if a script
-- of release 0.2.0 stops it, if its record is gone, or if that names another owner than it had. A claim holds them back
-- again if the limit still applies.
local function release_long_held_back()
  for _, owner in ipairs(due(HELD_BACK)) do release_held_back(owner) end
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
  if not (job and is_whole(job.start_by_ms) and redis.call('ZSCORE', owner_queue, id)) then return false end
  if job.requirement then leave_class(job.priority, job.requirement, job.owner, id) end
  leave_start_order(job.priority, owner_queue, job)
  redis.call('ZREM', owner_queue, id)
  write(job, {start_by_ms = false})
  enter_at_place(job)
  if job.requirement then list_by_place(job) end
  num_moved = num_moved + 1
  return true
end

-- Move the jobs that did not start in time.
local function move_late_jobs()
  local before_now = string.format('(%.0f', now)
  local late = redis.call('ZRANGE', START_BY, '-inf', before_now, 'BYSCORE', 'LIMIT', 0, MOST_LATE, 'WITHSCORES')
  for i = 1, #late, 2 do move_if_late(late[i], late[i + 1]) end
end

-- The id and place of an owner's first job in a class that never started.
local function first_of_owner(priority, requirement, owner)
  local key = requirement_owner_key(priority, requirement, owner)
  while true do
    local id, place = unpack(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES'))
    if not id then return nil end
    if not redis.call('ZSCORE', owner_queue_key(priority, owner), id) then
      redis.call('ZREM', key, id)
      if not redis.call('ZSCORE', queue_key(priority), id) then remove_from_class(priority, requirement, id) end
    elseif not move_if_late(id, is_whole(read_fields(id, 'start_by_ms')[1]) or now) then
      return id, place
    end
  end
end

-- The first job of a class that never started and may start, its owner's virtual start time, and its place.
local function first_by_virtual_time(priority, requirement)
  local owners = class_owners_key(priority, requirement)
  while true do
    local entry, entered = unpack(redis.call('ZRANGE', owners, 0, 0, 'WITHSCORES'))
    if not entry then return nil end
    local owner = name_of_entry(entry)
    local id, place = first_of_owner(priority, requirement, owner)
    local start = id and redis.call('ZSCORE', backlogged_key(priority), owner)
    if not start then
      redis.call('ZREM', owners, entry)
    elseif start ~= entered or start_order_member(place, owner) ~= entry then
      redis.call('ZREM', owners, entry)
      redis.call('ZADD', owners, start, start_order_member(place, owner))
    else
      local limit = limit_on_start(id)
      if not limit then return id, tonumber(start), tonumber(place) end
      if limit == 'total' then return nil end
      redis.call('ZREM', owners, entry)
      hold_back(priority, requirement, owner)
    end
  end
end

-- The first requeued job of a class that may start, and its number.
local function first_requeued(priority, requirement)
  local key = class_requeued_key(priority, requirement)
  while true do
    local id, number = unpack(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES'))
    if not id then return nil end
    local is_requeued = redis.call('ZSCORE', requeued_key(priority), id)
    local limit = is_requeued and limit_on_start(id)
    if limit == 'total' then return nil end
    if is_requeued and not limit then return id, 0, tonumber(number) end
    redis.call('ZREM', key, id)
    if limit then
      hold_back(priority, requirement, read_fields(id, 'owner')[1], id)
    elseif not redis.call('ZSCORE', queue_key(priority), id) then
      remove_from_class(priority, requirement, id)
    end
  end
end

-- The first of the jobs that `first_of_class` returns for these requirements.
local function first_of_classes(first_of_class, priority, requirements)
  local best, best_start, best_place
  for _, requirement in ipairs(requirements) do
    local id, start, place = first_of_class(priority, requirement)
    if id and (not best or start < best_start or start == best_start and place < best_place) then
      best, best_start, best_place = id, start, place
    end
  end
  return best
end

-- The number of queued jobs of one priority with this requirement.
local function depth_of(priority, requirement)
  local key = requirement_key(priority, requirement)
  while true do
    local id = redis.call('ZRANGE', key, 0, 0)[1]
    if not id or redis.call('ZSCORE', queue_key(priority), id) then return redis.call('ZCARD', key) end
    remove_from_class(priority, requirement, id)
  end
end

-- The requirements as a set, and a check that a queued job has one of them.
local function as_set(requirements)
  local set = {}
  for _, requirement in ipairs(requirements) do set[requirement] = true end
  return set
end

local function has_requirement_in(set, id)
  local requirement = read_fields(id, 'requirement')[1]
  return not requirement or set[requirement] or false
end

-- The first job that others set aside, that the caller can read, and that may start. Only the first few are looked at.
local MOST_SET_ASIDE = 20
local function first_set_aside(requirements)
  local set = as_set(requirements)
  for _, id in ipairs(redis.call('ZRANGE', SET_ASIDE, 0, MOST_SET_ASIDE - 1)) do
    local readable = is_readable(read_fields(id, 'unreadable_by')[1])
    if readable and has_requirement_in(set, id) and not limit_on_start(id) then return id end
  end
end

-- When a job was queued last, in ms.
local function queued_since_ms(created_ms, queued_ms)
  return tonumber(is_whole(queued_ms) or is_whole(created_ms) or now)
end

local function effective_time_of(id, priority)
  local created_ms, queued_ms, ageing_ms = unpack(read_fields(id, 'created_ms', 'queued_ms', 'ageing_ms'))
  return effective_time_ms(priority, queued_since_ms(created_ms, queued_ms), ageing_ms)
end

-- The id of the next job with one of these requirements, nil if none may start. Without requirements, the next of all.
local function next_job(requirements)
  requirements = requirements or redis.call('SMEMBERS', REQUIREMENTS)
  local set_aside_id = first_set_aside(requirements)
  if set_aside_id then return set_aside_id end
  local best, best_ms
  for _, priority in ipairs(PRIORITIES) do
    local id = first_of_classes(first_requeued, priority, requirements)
      or first_of_classes(first_by_virtual_time, priority, requirements)
    local time_ms = id and effective_time_of(id, priority)
    if id and (not best or time_ms < best_ms) then
      best, best_ms = id, time_ms
    end
  end
  return best
end
