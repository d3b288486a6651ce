-- The holder ends the job. Asked again, or after he ended it otherwise, it answers how the job ended.
local job = read(given.id)
if job and ENDED[job.status] and let_go(job) then return job.status end
job = held()
if not job then return LEASE_LOST end
if given.status == 'succeeded' and job.progress then
  local progress = cjson.decode(job.progress)
  progress.fraction, progress.eta_s = 1, 0
  given.fields.progress = cjson.encode(progress)
end
return finish(job, given.status, given.fields)
