-- include: transitions, allow_when_full
-- The holder ends the job. A repeated call, also one with another status, returns the status in which the job ended.
-- `counts` are counters that grow only if the job ends in the given status.
local job = read(given.id)
if job and ENDED[job.status] and was_released(job) then return job.status end
job = held()
if not job then return LEASE_LOST end
if given.status == 'succeeded' and job.progress then
  local progress = decode(job.progress)
  progress.fraction, progress.eta_s = 1, 0
  given.fields.progress = cjson.encode(progress)
end
local status = finish(job, given.status, given.fields)
if status == given.status then
  for _, counter in ipairs(given.counts) do count(unpack(counter)) end
end
return status
