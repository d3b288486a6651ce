-- include: queue
-- For each requirement: one ticket for each queued job, none if no such job may start.
local needed = {}
for i, requirement in ipairs(redis.call('SMEMBERS', REQUIREMENTS)) do
  local num_queued = 0
  for _, priority in ipairs(PRIORITIES) do
    num_queued = num_queued + depth_of(priority, requirement)
  end
  needed[i] = {requirement, next_job({requirement}) and num_queued or 0}
end
return needed
