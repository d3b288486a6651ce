-- How a job changes its state: each of these is the only way in which that happens.

local function announce(job)
  local entry = {'status', job.status}
  if job.progress then
    entry[3], entry[4] = 'progress', job.progress
  end
  redis.call('XADD', 'longcat:events:' .. job.id, 'MAXLEN', '~', 200, '*', unpack(entry))
end

-- The only way in which a job changes its status.
local function become(job, status, fields)
  for _, key in ipairs(index_keys(job.status, job.owner)) do redis.call('ZREM', key, job.id) end
  for _, key in ipairs(index_keys(status, job.owner)) do redis.call('ZADD', key, job.number, job.id) end
  fields.status = status
  write(job, fields)
  announce(job)
  tell_webhook(job)
  return status
end

-- Takes away the record and all that points to it, webhooks that were not sent too; the files are removed after this.
local function remove(job)
  remove_deliveries_of(job)
  for _, status in ipairs({'all', job.status}) do
    for _, key in ipairs(index_keys(status, job.owner)) do redis.call('ZREM', key, job.id) end
  end
  redis.call('DEL', record_key(job.id), 'longcat:events:' .. job.id, 'longcat:deliveries:' .. job.id)
  if job.idempotency_key then redis.call('DEL', job.idempotency_key) end
  redis.call('ZREM', 'longcat:expiring', job.id)
  redis.call('ZADD', 'longcat:removals', now, job.id)
end

-- The only way in which a job ends. Once a cancellation was accepted, it ends as that and nothing else.
local function finish(job, status, fields)
  if job.cancel_requested then status, fields = 'cancelled', {} end
  measure_end(job, status, fields, HELD[job.status] and job.ran_ms + now - job.claimed_ms)
  leave_line(job)
  redis.call('ZREM', 'longcat:leases', job.id)
  fields.finished_ms = now
  fields.expires_ms = now + job.retention_ms
  redis.call('ZADD', 'longcat:expiring', fields.expires_ms, job.id)
  if tonumber(job.fence) > 0 then redis.call('ZADD', 'longcat:removals', now, job.id) end
  become(job, status, fields)
  if job.delete_requested then remove(job) end
  return status
end

-- The job that the caller holds, nil if it is not his (any more).
local function held()
  local job = read(given.id)
  if job and HELD[job.status] and tonumber(job.fence) == given.fence then return job end
end

-- Whether the caller was the last to hold this job, and let go of it by itself.
local function let_go(job)
  return not HELD[job.status] and tonumber(job.fence) == given.fence and job.token
end

-- A holder is gone, or lets go: the job waits again at its place, unless that was its last attempt.
local function put_back(job, crashed, crash_error)
  local attempt = tonumber(job.attempt)
  if job.cancel_requested then return finish(job, 'cancelled', {}) end
  if crashed and attempt >= tonumber(job.max_attempts) then
    return finish(job, 'failed', {error = crash_error})
  end
  add('put_back', crashed and 'crashed' or job.makes_way and 'preempted' or 'drained', 1)
  redis.call('ZREM', 'longcat:leases', job.id)
  line_up(job)
  return become(job, 'queued', {
    attempt = crashed and attempt or attempt - 1,
    ran_ms = job.ran_ms + now - job.claimed_ms,
    group = false,
    progress = false,
    makes_way = false,
    way_made = false,
    told_ms = false,
    told_end_ms = false,
  })
end

