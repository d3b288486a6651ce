local job = visible(given.id)
if job and job.status == 'queued' then return place_in_line(job) end
