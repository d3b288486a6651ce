-- The place of a queued job and in how many ms it will have ended; the second is nil while nobody can know.
local job = visible(given.id)
if job and job.status == 'queued' then
  local position = place_in_line(job)
  return {position, ends_in_ms(job, position)}
end
