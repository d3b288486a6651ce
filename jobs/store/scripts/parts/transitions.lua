-- include: clock, record, queue, running_limits, gpu_time, files, metrics, outbox
-- Changes of a job's status. `set_status` is the only way to change it, `finish` the only way to end a job.

local RECENT_RUNS = 100
local MAX_EVENTS = 200

-- Add the present state of a job to its events. Once it has ended only the last one is needed, because each event that
-- clients get is the whole job; Redis keeps some more, as it removes events by the block.
local function add_event(job)
  local entry = {'status', job.status}
  if job.progress then
    entry[3], entry[4] = 'progress', job.progress
  end
  local length = ENDED[job.status] and 1 or MAX_EVENTS
  redis.call('XADD', 'longcat:events:' .. job.id, 'MAXLEN', '~', length, '*', unpack(entry))
end

local function set_status(job, status, fields)
  for _, key in ipairs(index_keys(job.status, job.owner)) do redis.call('ZREM', key, job.id) end
  for _, key in ipairs(index_keys(status, job.owner)) do redis.call('ZADD', key, job.number, job.id) end
  local stops_running = job.status == 'running' and status ~= 'running'
  if stops_running then fields.gpu_ms = gpu_ms(job) end
  fields.status = status
  write(job, fields)
  if stops_running then release_held_back(job.owner) end
  add_event(job)
  add_delivery(job)
  return status
end

-- The first job of a removed job's batch that still exists.
local function next_in_batch(job)
  local index = batch_index_keys(job)[1]
  while index do
    local id = redis.call('ZRANGE', index, 0, 0)[1]
    local other = id and read(id)
    if other or not id then return other end
    redis.call('ZREM', index, id)
  end
end

-- Free the idempotency key of a removed job. The key of a batch goes to the next of its jobs: a repeated request must
-- not create the batch again while some of it exists.
local function release_idempotency_key(job)
  local other = next_in_batch(job)
  if other then
    redis.call('HSET', job.idempotency_key, 'job', other.id)
    write(other, {idempotency_key = job.idempotency_key})
  else
    redis.call('DEL', job.idempotency_key)
  end
end

-- Remove the record and everything that refers to it, also webhooks that were not sent. Files are removed later.
local function remove(job)
  remove_deliveries(job)
  for _, keys in ipairs({lasting_index_keys(job), index_keys(job.status, job.owner)}) do
    for _, key in ipairs(keys) do redis.call('ZREM', key, job.id) end
  end
  redis.call('DEL', record_key(job.id), 'longcat:events:' .. job.id, 'longcat:delivery_log:' .. job.id)
  if job.idempotency_key then release_idempotency_key(job) end
  redis.call('ZREM', 'longcat:expiring', job.id)
  redis.call('ZADD', FIRST_REMOVALS, now, job.id)
  redis.call('ZREM', REMOVAL_LEASES, job.id) -- a process that has it may be keeping the files of an ended job
end

-- Remove all that refers to a job whose record is gone. Its owner is not known.
local function forget(id)
  count('unreadable_records', 'missing job')
  dequeue_unknown(id)
  for _, key in ipairs({'longcat:leases', 'longcat:expiring'}) do redis.call('ZREM', key, id) end
  redis.call('ZREM', 'longcat:index:all', id)
  for _, status in ipairs(STATUSES) do redis.call('ZREM', 'longcat:index:' .. status, id) end
  redis.call('ZADD', FIRST_REMOVALS, now, id)
end

-- How long the job has waited for GPUs since its last claim. Only a job of a world does so.
local function paused_ms(job)
  local is_paused = tonumber(job.num_gpus) == 0
  return job.paused_ms + (is_paused and now - math.max(job.claimed_ms, job.num_gpus_since_ms or 0) or 0)
end

-- How long the job has run in all attempts, without the time in which it waited for GPUs; nil if nobody holds it.
local function run_ms(job)
  return HELD[job.status] and job.run_ms + math.max(0, now - job.claimed_ms - paused_ms(job))
end

local function count_end(job, status, fields)
  count('jobs_ended', status)
  local deadline_ms = whole_number(job.deadline_ms)
  if deadline_ms and status ~= 'cancelled' then
    count('deadlines', status == 'succeeded' and now <= deadline_ms and 'met' or 'missed')
  end
  if fields.error then count('failures', decode(fields.error).code or '') end
  local duration_ms = run_ms(job)
  if not duration_ms then return end
  count('attempts', '', tonumber(job.attempt))
  observe('run_seconds', job.task, duration_ms / 1000)
  if status == 'succeeded' then -- estimates are made from these
    redis.call('LPUSH', 'longcat:recent_runs', job.task .. ' ' .. job.work_units .. ' ' .. duration_ms)
    redis.call('LTRIM', 'longcat:recent_runs', 0, RECENT_RUNS - 1)
  end
end

-- End a job and return its final status. Once cancellation was requested, that is `cancelled`.
local function finish(job, status, fields)
  if job.cancel_requested then status, fields = 'cancelled', {} end
  count_end(job, status, fields)
  dequeue(job)
  local spent_ms = gpu_ms(job)
  charge_for_gpu_time(job, spent_ms)
  correct_budget(job, spent_ms)
  add_to_usage(job, spent_ms)
  if status == 'succeeded' then add_to_recent_gpu_time(job, spent_ms) end
  redis.call('ZREM', 'longcat:leases', job.id)
  fields.finished_ms = now
  fields.expires_ms = now + job.retention_ms
  redis.call('ZADD', 'longcat:expiring', fields.expires_ms, job.id)
  if tonumber(job.fence) > 0 then redis.call('ZADD', FIRST_REMOVALS, now, job.id) end
  set_status(job, status, fields)
  if job.delete_requested then remove(job) end
  return status
end

-- Check that the caller was the last to hold this job and released it itself, so that a repeated call can be answered
-- like the first one.
local function was_released(job)
  return not HELD[job.status] and tonumber(job.fence) == given.fence and job.claim_token
end

-- The progress of a requeued job: what its checkpoint has saved, false if that is nothing.
local function saved_progress(job)
  local progress, fraction = decode(job.progress), decode(job.checkpoint).fraction
  if not progress.phase or type(fraction) ~= 'number' or fraction <= 0 then return false end
  progress.phase, progress.step, progress.num_steps = 'load', 0, 0
  progress.fraction, progress.eta_s = fraction, cjson.null
  return cjson.encode(progress)
end

-- Return a held job to its place in the queue, or fail it if it crashed in its last attempt. The cause is `crashed`,
-- `drained` or `unreadable`.
local function requeue(job, cause, crash_error)
  local attempt, crashed = tonumber(job.attempt), cause == 'crashed'
  if job.cancel_requested then return finish(job, 'cancelled', {}) end
  count_lost_gpu_time(job)
  if crashed and attempt >= tonumber(job.max_attempts) then
    return finish(job, 'failed', {error = crash_error})
  end
  count('requeues', cause == 'drained' and job.preempt_requested and 'preempted' or cause)
  redis.call('ZREM', 'longcat:leases', job.id)
  enqueue(job)
  return set_status(job, 'queued', {
    attempt = crashed and attempt or attempt - 1,
    run_ms = run_ms(job),
    paused_ms = false,
    queued_ms = now,
    group = false,
    progress = saved_progress(job),
    preempt_requested = false,
    preempts = false,
  })
end
