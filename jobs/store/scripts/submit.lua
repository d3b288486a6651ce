local job = visible(given.id)
if not job then
  if is_gone(given.id) then return NOT_FOUND end
  job = given.record
  if job.idempotency_key then
    local bound, fingerprint = unpack(redis.call('HMGET', job.idempotency_key, 'job', 'fingerprint'))
    if bound and (bound ~= job.id or fingerprint ~= given.fingerprint) then return KEY_REUSED end
  end
  local refusal = over_limit(job, given.limits)
  if refusal then return refusal end
  count_input_bytes(job)
  if job.idempotency_key then
    redis.call('HSET', job.idempotency_key, 'job', job.id, 'fingerprint', given.fingerprint)
    redis.call('PERSIST', job.idempotency_key)
  end
  local number = redis.call('INCR', 'longcat:submitted')
  redis.call('ZREM', 'longcat:removals', job.id)
  if job.max_queue_ms then redis.call('ZADD', 'longcat:queue_deadlines', now + job.max_queue_ms, job.id) end
  for _, key in ipairs(index_keys('all', job.owner)) do redis.call('ZADD', key, number, job.id) end
  write(job, job)
  local work = work_of(cjson.decode(job.order))
  write(job, {number = number, created_ms = now, attempt = 0, fence = 0, ran_ms = 0, work = work})
  line_up(job)
  job.status = 'queued'
  become(job, 'queued', {})
  write(job, {predicted_ms = ends_in_ms(job, place_in_line(job)) or false})
end
return redis.call('HGETALL', record_key(given.id))
