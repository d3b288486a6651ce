-- include: record, queue
-- GPU time in ms: the time during which jobs have the GPUs of a group, times their number.

-- The work units and GPU time of the jobs that succeeded lately. Each new one lets the earlier ones count less.
local GPU_TIME = 'longcat:gpu_time'
local KEPT = 0.95

-- The GPU time of all attempts of a job so far.
local function gpu_ms(job)
  local running_ms = job.status == 'running' and math.max(0, now - job.claimed_ms) or 0
  return job.gpu_ms + running_ms * job.num_gpus
end

local function recent_gpu_time()
  local work_units, ms = unpack(redis.call('HMGET', GPU_TIME, 'work_units', 'gpu_ms'))
  return tonumber(work_units or 0), tonumber(ms or 0)
end

local function add_to_recent_gpu_time(job, spent_ms)
  local work_units, ms = recent_gpu_time()
  redis.call('HSET', GPU_TIME, 'work_units', work_units * KEPT + job.work_units, 'gpu_ms', ms * KEPT + spent_ms)
end

-- Charge the owner of an ended job for the GPU time that it took, instead of for its work units. It is converted to
-- the work units that other jobs had in that time. Until a job has succeeded, this is not known.
local function charge_for_gpu_time(job, spent_ms)
  local work_units, ms = recent_gpu_time()
  if not job.started_ms or ms == 0 then return end
  local difference = charge(spent_ms * work_units / ms, job.weight) - charge(job.work_units, job.weight)
  correct_charge(job.priority, job.owner, difference)
end
