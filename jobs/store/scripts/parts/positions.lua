-- include: queue_order
-- Positions of queued jobs: the order in which jobs start if every owner may start jobs.

-- The position of a queued job among those of its priority if every owner may start jobs; 1 is next.
local function position_in_priority(job)
  local id, priority = job.id, job.priority
  local requeued = requeued_key(priority)
  local rank = redis.call('ZRANK', requeued, id)
  if rank then return rank + 1 end
  local place = redis.call('ZSCORE', owner_queue_key(priority, job.owner), id)
  rank = place and redis.call('ZRANK', start_order_key(priority), start_order_member(place, id))
  if rank then return redis.call('ZCARD', requeued) + rank + 1 end
  return 1 -- its record names another priority than the one with which it was submitted: it has no position
end

-- The position that a job would have among those of its priority if it were submitted now. Of the jobs with the same
-- virtual start time, only the first hundred are compared with it.
local function position_if_submitted(job)
  local order, place = start_order_key(job.priority), place_of(job)
  local start = start_at(job.priority, job.owner, place)
  local num_before = redis.call('ZCARD', requeued_key(job.priority)) + redis.call(
    'ZCOUNT', order, '-inf', string.format('(%.0f', start)
  )
  for _, member in ipairs(redis.call('ZRANGE', order, start, start, 'BYSCORE', 'LIMIT', 0, 100)) do
    if member < start_order_member(place, job.id) then num_before = num_before + 1 end
  end
  return num_before + 1
end

-- The jobs of one priority between two ranks, from 0, of the order in which they start: first those that were requeued.
local function jobs_in_order(priority, first, last)
  local requeued, num_requeued = requeued_key(priority), redis.call('ZCARD', requeued_key(priority))
  local ids = redis.call('ZRANGE', requeued, first, last)
  if last < num_requeued then return ids end
  local rest = {math.max(0, first - num_requeued), last - num_requeued}
  for _, entry in ipairs(redis.call('ZRANGE', start_order_key(priority), unpack(rest))) do
    table.insert(ids, name_of_entry(entry))
  end
  return ids
end

-- The effective times of these jobs, 0 for a job without one.
local function effective_times(priority, first, last)
  local ids = jobs_in_order(priority, first, last)
  if #ids == 0 then return ids end
  local times = redis.call('ZMSCORE', effective_times_key(priority), unpack(ids))
  for i, time_ms in ipairs(times) do times[i] = tonumber(time_ms or 0) end
  return times
end

-- By ageing, the jobs of two priorities mix. Since only the first job of each is compared, a job starts before one of
-- the other priority if the latest effective time of it and the jobs before it is earlier. The latest is looked for
-- among the hundred jobs before: more are rarely out of the order in which they were queued.
local MOST_COMPARED = 100

-- The latest effective time of a queued job and those of its priority before it. It is read only if a job of another
-- priority may lie between this and the effective time of the job itself.
local function latest_effective_time(job, position, others)
  local key = effective_times_key(job.priority)
  local time_ms = tonumber(redis.call('ZSCORE', key, job.id) or effective_time_of(job.id, job.priority))
  local latest_ms = tonumber(redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2] or time_ms)
  for _, other in ipairs(others) do
    if redis.call('ZCOUNT', effective_times_key(other), time_ms, latest_ms) > 0 then
      local first = math.max(0, position - MOST_COMPARED)
      return math.max(time_ms, unpack(effective_times(job.priority, first, position - 1)))
    end
  end
  return time_ms
end

-- The number of jobs of a priority that start before a job of another one with this latest effective time.
local function num_before(priority, other, latest_ms)
  local is_higher = NUM_ABOVE[priority] < NUM_ABOVE[other] -- then it starts first if both have the same time
  local key = effective_times_key(priority)
  local later = string.format(is_higher and '(%.0f' or '%.0f', latest_ms)
  local num_later = redis.call('ZCOUNT', key, later, '+inf')
  local num_earlier = redis.call('ZCARD', key) - num_later
  if num_later == 0 or num_earlier == 0 then return num_earlier end
  local first = math.max(0, num_earlier - MOST_COMPARED)
  for i, time_ms in ipairs(effective_times(priority, first, num_earlier - 1)) do
    if time_ms > latest_ms or time_ms == latest_ms and not is_higher then return first + i - 1 end
  end
  return num_earlier
end

local has_queued_jobs = {}
for _, priority in ipairs(PRIORITIES) do
  has_queued_jobs[priority] = redis.call('EXISTS', effective_times_key(priority)) == 1
end

-- The number of jobs of each priority, the highest first, that start before a job. `position` is its position among the
-- jobs of its own priority. For a job that is not submitted yet, `latest_ms` is its effective time.
local function nums_before(job, position, latest_ms)
  local nums, others = {}, {}
  for i, priority in ipairs(PRIORITIES) do
    nums[i] = priority == job.priority and position - 1 or 0
    if priority ~= job.priority and has_queued_jobs[priority] then table.insert(others, priority) end
  end
  if #others == 0 then return nums end
  latest_ms = latest_ms or latest_effective_time(job, position, others)
  for _, priority in ipairs(others) do nums[NUM_ABOVE[priority] + 1] = num_before(priority, job.priority, latest_ms) end
  return nums
end
