-- include: clock, record
-- Removal of files that no job needs. Files of an id are removed twice: as soon as it is due, and once more when no
-- upload can arrive in the storage any longer. An id that is reserved is due when its reservation runs out.

local FIRST_REMOVALS = 'longcat:file_removals:first'
local SECOND_REMOVALS = 'longcat:file_removals:second'
-- Jobs whose files a process is removing, by the end of its lease.
local REMOVAL_LEASES = 'longcat:file_removals:leases'

-- Check that an id belonged to a job or a reservation and will never belong to one again.
local function is_gone(id)
  local first = redis.call('ZSCORE', FIRST_REMOVALS, id)
  local is_listed = first and tonumber(first) <= now or redis.call('ZSCORE', SECOND_REMOVALS, id)
  return is_listed and not read(id)
end
