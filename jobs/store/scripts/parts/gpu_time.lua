-- include: record, queue, metrics
-- GPU time in ms: the time during which jobs have the GPUs of a group, times their number.

-- The work units and GPU time of the jobs that succeeded lately. Each new one lets the earlier ones count less.
local GPU_TIME = 'longcat:gpu_time'
local KEPT = 0.95

local function recent_gpu_time()
  local work_units, ms = unpack(redis.call('HMGET', GPU_TIME, 'work_units', 'gpu_ms'))
  return tonumber(work_units or 0), tonumber(ms or 0)
end

local function add_to_recent_gpu_time(job, spent_ms)
  local work_units, ms = recent_gpu_time()
  redis.call('HSET', GPU_TIME, 'work_units', work_units * KEPT + job.work_units, 'gpu_ms', ms * KEPT + spent_ms)
end

-- The GPU time that a job is expected to take; 0 until a job has succeeded.
local function expected_gpu_ms(job)
  local work_units, ms = recent_gpu_time()
  return work_units > 0 and math.floor(job.work_units * ms / work_units + 0.5) or 0
end

-- The GPU time of the jobs that an owner submitted on a day: of those that have ended what they took, of the others
-- what they are expected to take.
local function budget_key(owner, submitted_ms)
  return 'longcat:gpu_budget:' .. math.floor(submitted_ms / DAY_MS) .. ':' .. owner
end

local function budgeted_gpu_ms(owner)
  return tonumber(redis.call('GET', budget_key(owner, now)) or 0)
end

local function add_to_budget(job)
  job.expected_gpu_ms = expected_gpu_ms(job)
  local key = budget_key(job.owner, now)
  redis.call('INCRBY', key, job.expected_gpu_ms)
  redis.call('PEXPIRE', key, 2 * DAY_MS)
end

-- Count the GPU time that an ended job took instead of what it was expected to take, unless its day is long over.
local function correct_budget(job, spent_ms)
  local key = budget_key(job.owner, job.created_ms)
  if redis.call('EXISTS', key) == 1 then redis.call('INCRBY', key, spent_ms - job.expected_gpu_ms) end
end

-- Add the GPU time of an ended job, and its cost at the price that held when it was submitted, to what its owner has
-- used today. Sums are of amounts, so a new price does not change what was used before.
local USAGE_KEPT_MS = 32 * DAY_MS
local MS_PER_HOUR = 3600000
local function add_to_usage(job, spent_ms)
  if spent_ms == 0 then return end
  local key = 'longcat:usage:' .. math.floor(now / DAY_MS)
  local function add(part, field, amount)
    redis.call('HINCRBYFLOAT', key .. part, field, amount)
    redis.call('PEXPIRE', key .. part, USAGE_KEPT_MS)
  end
  add('', job.owner, spent_ms)
  count('gpu_seconds', job.task, spent_ms / 1000)
  if tonumber(job.lost_gpu_ms) > 0 then
    add(':lost', job.owner, job.lost_gpu_ms)
    count('lost_gpu_seconds', job.task, job.lost_gpu_ms / 1000)
  end
  local price = (job.gpu_hour_price or ''):match('^%d+%.?%d*$')
  if price and job.currency then
    local cost = string.format('%.9f', spent_ms / MS_PER_HOUR * price)
    add(':cost:' .. job.owner, job.currency, cost)
    count('cost', job.currency, cost)
  end
end

-- Count the GPU time of a job since its last checkpoint as lost: the next worker that runs it repeats that work.
local function count_lost_gpu_time(job)
  local spent_ms = gpu_ms(job)
  local lost_ms = job.lost_gpu_ms + math.max(0, spent_ms - job.saved_gpu_ms)
  write(job, {lost_gpu_ms = lost_ms, saved_gpu_ms = spent_ms})
end

-- Charge the owner of an ended job for the GPU time that it took, instead of for its work units. It is converted to
-- the work units that other jobs had in that time. Until a job has succeeded, this is not known.
local function charge_for_gpu_time(job, spent_ms)
  local work_units, ms = recent_gpu_time()
  if not job.started_ms or ms == 0 then return end
  local difference = charge(spent_ms * work_units / ms, job.weight) - charge(job.work_units, job.weight)
  correct_charge(job.priority, job.owner, difference)
end
