-- include: record
-- The order in which queued jobs start. Higher priorities come first, unless a job of a lower one has waited much
-- longer (`effective_time_ms`).
--
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

-- Members with equal scores are in lexicographic order, so the place comes first, with leading zeros.
local function start_order_member(place, id)
  return string.format('%016d:%s', place, id)
end

-- The name in such a member.
local function name_of_entry(entry)
  return entry:sub(18)
end

-- Jobs that never started, in the order in which they start if no limit on running jobs applies: by virtual start time,
-- then by place. Only positions are read from it: with any number of owners, a position takes the same few commands.
-- A job's virtual start time is that of its owner plus the charges for the owner's jobs before it. After a cancellation
-- it is an estimate (`leave_start_order`).
local function start_order_key(priority)
  return queue_key(priority) .. ':start_order'
end

local function virtual_time_key(priority)
  return queue_key(priority) .. ':virtual_time'
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

-- The submission of the last of an owner's queued jobs in µs, by owner. The µs come from the number of the job, so that
-- those of one millisecond keep their order. When the last three digits of the number begin again, or the clock goes
-- back, a job counts as submitted just after the job before it.
local function last_submission_key(priority)
  return queue_key(priority) .. ':last_submission'
end

local US_PER_MS = 1000

-- Set how much later than at `created_ms` a new job counts as submitted, in µs.
local function set_submission_delay(job)
  local last_us = redis.call('HGET', last_submission_key(job.priority), job.owner) or 0
  job.submission_delay_us = math.max(job.number % US_PER_MS, last_us + 1 - job.created_ms * US_PER_MS)
end

local function submission_us(job)
  return job.created_ms * US_PER_MS + (whole_number(job.submission_delay_us) or 0)
end

-- The place of a job among those of its owner, in µs.
local DEFAULT_DEADLINE_MS = 3600000 -- for records without one
local function place_of(job)
  local start_by_ms = whole_number(job.start_by_ms)
  if not start_by_ms then
    return submission_us(job) + (whole_number(job.default_deadline_ms) or DEFAULT_DEADLINE_MS) * US_PER_MS
  end
  local place = start_by_ms * US_PER_MS + job.number % US_PER_MS
  -- Jobs that should start in the same ms start in the order of submission: if one of them is later, this follows it.
  local owner_queue, next_ms = owner_queue_key(job.priority, job.owner), (start_by_ms + 1) * US_PER_MS
  local later = redis.call(
    'ZRANGE', owner_queue, string.format('(%.0f', next_ms), place, 'BYSCORE', 'REV', 'LIMIT', 0, 1, 'WITHSCORES'
  )
  return later[2] and later[2] + 1 or place
end

-- Jobs that never started and may still meet their deadlines, by the time by which they should start.
local START_BY = 'longcat:queue:start_by'

-- Turn the deadline of a new job, in ms from its submission, into times.
local function set_deadline(job)
  if not job.deadline_ms then return end
  job.deadline_ms = job.created_ms + job.deadline_ms
  local start_by_ms = job.deadline_ms - (job.expected_run_ms or 0)
  if start_by_ms >= job.created_ms then job.start_by_ms = start_by_ms end
end

-- Add `by` to the virtual start times of an owner's jobs, from that with this rank in the owner's queue, up to
-- `last_rank` if given. Only the first hundred are moved, so that a long queue takes no longer than a short one.
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

-- The virtual start time of a job of an owner at this place: that of the job before it plus the charge for that job.
-- And its rank in the owner's queue, nil if it is the last.
local function start_at(priority, owner, place)
  local owner_queue = owner_queue_key(priority, owner)
  local previous, previous_place = unpack(redis.call('ZRANGE', owner_queue, -1, -1, 'WITHSCORES'))
  local rank
  if previous and tonumber(previous_place) > place then
    rank = redis.call('ZCOUNT', owner_queue, '-inf', string.format('(%d', place))
    if rank == 0 then return first_start(priority, owner), rank end
    previous, previous_place = unpack(redis.call('ZRANGE', owner_queue, rank - 1, rank - 1, 'WITHSCORES'))
  end
  local member = previous and start_order_member(previous_place, previous)
  local start = member and redis.call('ZSCORE', start_order_key(priority), member)
  if not start then return first_start(priority, owner), rank end
  local work_units, weight = unpack(read_fields(previous, 'work_units', 'weight'))
  return start + charge(whole_number(work_units) or NUMBERS.work_units, weight), rank
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

-- Queued jobs, by effective time: when a job was queued last, later by its `ageing_ms` for each priority above its own.
-- The first job of a priority starts before that of a higher one if this is lower. So jobs of low priority start
-- although there are always jobs of high priority, and the order of two jobs never changes while they wait.
local function effective_times_key(priority)
  return queue_key(priority) .. ':effective_times'
end

local STRICT_MS = 1e14 -- for jobs without `ageing_ms`
local function effective_time_ms(priority, queued_since_ms, ageing_ms)
  return queued_since_ms + NUM_ABOVE[priority] * (whole_number(ageing_ms) or STRICT_MS)
end

-- When a job was queued last, in ms.
local function queued_since_ms(created_ms, queued_ms)
  return whole_number(queued_ms) or whole_number(created_ms) or now
end

local function effective_time_of(id, priority)
  local created_ms, queued_ms, ageing_ms = unpack(read_fields(id, 'created_ms', 'queued_ms', 'ageing_ms'))
  return effective_time_ms(priority, queued_since_ms(created_ms, queued_ms), ageing_ms)
end
