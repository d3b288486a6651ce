-- include: transitions, allow_when_full
-- Return 1 if the record is removed, 0 if it will be when the holder stops. If the reply is lost, the same token gets
-- the same reply.
local deleted_key = 'longcat:deletes:' .. given.token
if redis.call('EXISTS', deleted_key) == 1 then return 1 end
local job = visible(given.id)
if not job then return JOB_NOT_FOUND end
if HELD[job.status] then
  write(job, {cancel_requested = 1, delete_requested = 1})
  return 0
end
if job.status == 'queued' then finish(job, 'cancelled', {}) end
remove(job)
redis.call('SET', deleted_key, 1, 'PX', 60000)
return 1
