-- include: clock, queue
-- For each requirement of a queued job: the number of such jobs, and for how many ms the first of them has waited.
local depths = {}
for i, requirement in ipairs(redis.call('SMEMBERS', REQUIREMENTS)) do
  local num_jobs, longest_ms = 0, 0
  for _, priority in ipairs(PRIORITIES) do
    local num, first = depth_of(priority, requirement)
    num_jobs = num_jobs + num
    if first then longest_ms = math.max(longest_ms, now - (read(first).created_ms or now)) end
  end
  depths[i] = {requirement, num_jobs, longest_ms}
end
return depths
