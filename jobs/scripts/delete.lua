-- Answers 1 if the record is gone, 0 if it goes when the holder has let go.
local job = visible(given.id)
if not job then
  return redis.call('ZSCORE', 'longcat:removals', given.id) and 1 or NOT_FOUND
end
if HELD[job.status] then
  write(job, {cancel_requested = 1, delete_requested = 1})
  return 0
end
if job.status == 'queued' then finish(job, 'cancelled', {}) end
remove(job)
return 1
