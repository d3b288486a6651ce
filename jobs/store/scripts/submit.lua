-- include: transitions, quotas
-- Return 1 if the job is new, 0 if an earlier submission created it, and its record.
local job = visible(given.id)
local is_new = not job
if is_new then
  if is_gone(given.id) then return JOB_NOT_FOUND end
  job = given.record
  if job.idempotency_key then
    local bound, fingerprint = unpack(redis.call('HMGET', job.idempotency_key, 'job', 'fingerprint'))
    if bound and (bound ~= job.id or fingerprint ~= given.fingerprint) then return KEY_REUSED end
  end
  local refusal = check_quotas(job, given.limits)
  if refusal then return refusal end
  count_input_bytes(job)
  add_to_budget(job)
  if job.idempotency_key then
    redis.call('HSET', job.idempotency_key, 'job', job.id, 'fingerprint', given.fingerprint)
    redis.call('PERSIST', job.idempotency_key)
  end
  job.number = redis.call('INCR', 'longcat:submitted')
  job.created_ms, job.attempt, job.fence, job.run_ms = now, 0, 0, 0
  set_deadline(job)
  redis.call('ZREM', FIRST_REMOVALS, job.id)
  if job.max_queue_ms then redis.call('ZADD', 'longcat:queue_deadlines', now + job.max_queue_ms, job.id) end
  for _, key in ipairs(index_keys('all', job.owner)) do redis.call('ZADD', key, job.number, job.id) end
  write(job, job)
  enqueue(job)
  job.status = 'queued'
  set_status(job, 'queued', {})
end
return {is_new and 1 or 0, redis.call('HGETALL', record_key(given.id))}
