-- Answers 1 if the record is gone, 0 if it goes when the holder has let go. Asked again, after a lost answer, the same.
local done_key = 'longcat:deletes:' .. given.token
if redis.call('EXISTS', done_key) == 1 then return 1 end
local job = visible(given.id)
if not job then return NOT_FOUND end
if HELD[job.status] then
  write(job, {cancel_requested = 1, delete_requested = 1})
  return 0
end
if job.status == 'queued' then finish(job, 'cancelled', {}) end
remove(job)
redis.call('SET', done_key, 1, 'PX', 60000)
return 1
