-- include: transitions, allow_when_full
-- The holder adds a warning to the job, once.
local job = held()
if not job then return LEASE_LOST end
local warnings = decode(job.warnings)
for _, warning in ipairs(warnings) do
  if warning == given.warning then return end
end
table.insert(warnings, given.warning)
write(job, {warnings = cjson.encode(warnings)})
add_event(job)
