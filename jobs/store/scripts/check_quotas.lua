-- include: quotas
-- Check, before the inputs of jobs are stored, that so many jobs like this one would not exceed a limit. Nothing
-- changes. A job that exists was submitted by an earlier request with the same key.
if visible(given.record.id) then return 0 end
return check_quotas(given.record, given.num_jobs, given.limits) or 0
