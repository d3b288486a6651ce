-- include: call
-- Job records. Keys are built from ids here, so this does not run on Redis Cluster.

local ENDED = {succeeded = true, failed = true, cancelled = true}
local HELD = {running = true, uploading = true}

local function record_key(id)
  return 'longcat:job:' .. id
end

-- The indexes of a status (or `all`): of all owners, and of one.
local function index_keys(status, owner)
  return {'longcat:index:' .. status, 'longcat:index:' .. status .. ':' .. owner}
end

-- A hash as a table of strings, nil if the key does not exist.
local function read_hash(key)
  local flat = redis.call('HGETALL', key)
  if #flat == 0 then return nil end
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

-- A record. Fields that other releases did not write have their defaults: a record that stopped the sweep would stop it
-- for all jobs.
local function read(id)
  local job = read_hash(record_key(id))
  if job then
    job.run_ms = job.run_ms or 0
    job.work_units = job.work_units or 1
  end
  return job
end

-- The record if the caller may see it. For a caller with an owner, jobs of other owners do not exist.
local function visible(id)
  local job = read(id)
  if job and (not given.owner or job.owner == given.owner) then return job end
end

-- The record if the caller holds the job: its fencing token must be that of the latest claim.
local function held()
  local job = read(given.id)
  if job and HELD[job.status] and tonumber(job.fence) == given.fence then return job end
end

-- Set fields of the record, and of the table `job`; false removes a field.
local function write(job, fields)
  local set, removed = {}, {}
  for name, value in pairs(fields) do
    if value then
      set[#set + 1] = name
      set[#set + 1] = value
    else
      removed[#removed + 1] = name
    end
    job[name] = value or nil
  end
  if #set > 0 then redis.call('HSET', record_key(job.id), unpack(set)) end
  if #removed > 0 then redis.call('HDEL', record_key(job.id), unpack(removed)) end
end
