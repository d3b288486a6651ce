-- include: transitions, quotas
-- Submit one job, or all jobs of a batch, whose owner and size are the same. Return 1 if they are new, 0 if an earlier
-- submission created them, and the record of the first. The same request with the same key may have been submitted
-- under another id: when one of several requests fails, it frees the key.

local function submit(job)
  add_to_budget(job)
  job.number = redis.call('INCR', 'longcat:submitted')
  job.created_ms, job.attempt, job.fence, job.run_ms = now, 0, 0, 0
  set_deadline(job)
  set_submission_delay(job)
  redis.call('ZREM', FIRST_REMOVALS, job.id)
  if job.max_queue_ms then redis.call('ZADD', 'longcat:queue_deadlines', now + job.max_queue_ms, job.id) end
  for _, key in ipairs(lasting_index_keys(job)) do redis.call('ZADD', key, job.number, job.id) end
  write(job, job)
  enqueue(job)
  job.status = 'queued'
  set_status(job, 'queued', {})
end

local first = given.records[1]
local is_new = not visible(first.id)
if is_new then
  for _, job in ipairs(given.records) do
    if is_gone(job.id) then return JOB_NOT_FOUND end
  end
  if first.idempotency_key then
    local bound, fingerprint = unpack(redis.call('HMGET', first.idempotency_key, 'job', 'fingerprint'))
    if bound and fingerprint ~= given.fingerprint then return KEY_REUSED end
    if bound and visible(bound) then return {0, redis.call('HGETALL', record_key(bound))} end
  end
  local refusal = check_quotas(first, #given.records, given.limits)
  if refusal then return refusal end
  count_input_bytes(first)
  if first.idempotency_key then
    redis.call('HSET', first.idempotency_key, 'job', first.id, 'fingerprint', given.fingerprint)
    redis.call('PERSIST', first.idempotency_key)
  end
  for _, job in ipairs(given.records) do submit(job) end
end
return {is_new and 1 or 0, redis.call('HGETALL', record_key(first.id))}
