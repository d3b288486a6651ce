-- include: next_job, allow_when_full
-- For each requirement: one ticket for each queued job, none if no such job may start. All jobs that were set aside
-- together get one, which tells when a worker that can read them has come.
move_late_jobs() -- as every claim does
local num_set_aside = {}
for _, id in ipairs(redis.call('ZRANGE', SET_ASIDE, 0, 99)) do
  local requirement = read_fields(id, 'requirement')[1]
  if requirement then num_set_aside[requirement] = (num_set_aside[requirement] or 0) + 1 end
end
local needed = {}
for i, requirement in ipairs(redis.call('SMEMBERS', REQUIREMENTS)) do
  local num_queued = -math.max(0, (num_set_aside[requirement] or 0) - 1)
  for _, priority in ipairs(PRIORITIES) do
    num_queued = num_queued + depth_of(priority, requirement)
  end
  needed[i] = {requirement, next_job({requirement}) and math.max(0, num_queued) or 0}
end
return needed
