-- include: transitions, allow_when_full
local job = visible(given.id)
if not job then return JOB_NOT_FOUND end
if job.status == 'succeeded' or job.status == 'failed' then return JOB_ENDED end
if job.status == 'queued' then
  finish(job, 'cancelled', {})
elseif HELD[job.status] then
  write(job, {cancel_requested = 1})
  add_event(job)
end
return redis.call('HGETALL', record_key(given.id))
