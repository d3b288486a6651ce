-- What is measured as jobs go, for whoever asks any service: one hash, `longcat:measures`, with the fields
-- `<name>|<label>|sum`, and for a distribution also `<name>|<label>|<n>`, which counts the values that are at most
-- 2^(n/2) and above the one before.

local LOWEST, HIGHEST = -20, 32 -- about 1 ms to 18 h

local function add(name, label, amount)
  redis.call('HINCRBYFLOAT', 'longcat:measures', name .. '|' .. label .. '|sum', amount)
end

local function observe(name, label, value)
  if not (value > 0) then value = 0 end
  local n = value > 0 and math.ceil(2 * math.log(value) / math.log(2) - 1e-9) or LOWEST
  n = math.min(HIGHEST + 1, math.max(LOWEST, n))
  add(name, label, value)
  redis.call('HINCRBY', 'longcat:measures', name .. '|' .. label .. '|' .. n, 1)
end

local function measure_begin(job)
  if not job.started_ms then observe('wait_seconds', job.priority, (now - job.created_ms) / 1000) end
end

local function measure_forecast(job)
  if not job.predicted_ms then return end
  -- a millisecond at least: both are divided by, and a job must not be kept from its end by what is measured
  local predicted_s, actual_s = math.max(1, job.predicted_ms) / 1000, math.max(1, now - job.created_ms) / 1000
  add('forecast_seconds', 'predicted', predicted_s)
  add('forecast_seconds', 'actual', actual_s)
  add('forecast_seconds', 'error', math.abs(predicted_s - actual_s))
  observe('forecast_ratio', '', actual_s / predicted_s)
  observe('eta_error_ratio', 'queue', math.abs(predicted_s - actual_s) / actual_s)
end

-- How far the first ETA that was told of a running job was from what came, as a share of that.
local function measure_run_eta(job)
  if not job.told_ms or tonumber(job.told_ms) == now then return end
  observe('eta_error_ratio', 'run', math.abs(job.told_end_ms - now) / (now - job.told_ms))
end

local function measure_film(job, timings_s, result, ran_s)
  local order = cjson.decode(job.order)
  order = order.plan or order -- orders of 0.1 have no plan of their own
  local steps = order.num_inference_steps * order.num_segments
  if timings_s.denoise then observe('step_seconds', job.task, timings_s.denoise / steps) end
  local group = redis.call('GET', 'longcat:group:' .. (job.group or ''))
  local ranks = group and cjson.decode(group).ranks or 1
  observe('gpu_seconds_per_video_second', job.task, ranks * ran_s / result.duration_s)
  add('uploads', 'stored', 1)
  add('uploaded_bytes', '', result.size_bytes)
end

-- A job ends in this state, with these fields; `ran_ms` is how long it ran in all, nil if nobody held it.
local function measure_end(job, status, fields, ran_ms)
  add('jobs_ended', status, 1)
  if fields.error then
    local code = cjson.decode(fields.error).code
    add('failures', code, 1)
    if code == 'upload_failed' then add('uploads', 'failed', 1) end
  end
  if not ran_ms then return end
  add('attempts', '', tonumber(job.attempt))
  observe('run_seconds', job.task, ran_ms / 1000)
  local timings_s = fields.timings_s and cjson.decode(fields.timings_s) or {}
  for phase, seconds in pairs(timings_s) do observe('phase_seconds', phase, seconds) end
  if status == 'succeeded' then
    measure_film(job, timings_s, cjson.decode(fields.result), ran_ms / 1000)
    measure_forecast(job)
    measure_run_eta(job)
    learn_pace(job, ran_ms)
  end
end

