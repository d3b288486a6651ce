-- include: classes, allow_when_full
-- Give a requirement to a queued job that has none.
local job = read(given.id)
if job and job.status == 'queued' and not job.requirement then
  write(job, {requirement = given.requirement})
  add_to_class(job)
end
