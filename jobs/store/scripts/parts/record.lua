-- include: clock
-- Job records. Keys are built from ids here, so this does not run on Redis Cluster.

local ENDED = {succeeded = true, failed = true, cancelled = true}
local HELD = {running = true, uploading = true}
local STATUSES = {'queued', 'running', 'uploading', 'succeeded', 'failed', 'cancelled'}

-- The highest first, and how many are above each.
local PRIORITIES = {'high', 'normal', 'low'}
local NUM_ABOVE = {}
for i, priority in ipairs(PRIORITIES) do NUM_ABOVE[priority] = i - 1 end

local function record_key(id)
  return 'longcat:job:' .. id
end

-- The index of a status (or `all`), of one owner or of all.
local function index_key(status, owner)
  return 'longcat:index:' .. status .. (owner and ':' .. owner or '')
end

-- Both indexes of a status.
local function index_keys(status, owner)
  return {index_key(status), index_key(status, owner)}
end

-- A hash as a table of strings, nil if the key does not exist or is of another type.
local function read_hash(key)
  local flat = redis.pcall('HGETALL', key)
  if #flat == 0 then return nil end
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

-- Fields of a record, {} if the key does not exist or is of another type.
local function read_fields(id, ...)
  local values = redis.pcall('HMGET', record_key(id), ...)
  return values.err and {} or values
end

-- Check that an index has at least so many jobs. A job whose record is gone may still be in the index of its owner,
-- because nothing names that owner any more. Such a job is removed if it is the first of the index.
local function has_at_least(num_jobs, index)
  while redis.call('ZCARD', index) >= num_jobs do
    local id = redis.call('ZRANGE', index, 0, 0)[1]
    if not id or read_fields(id, 'status')[1] then return true end
    redis.call('ZREM', index, id)
  end
  return false
end

-- A document as a table, {} if it is missing or no object.
local function decode(document)
  local is_json, value = pcall(cjson.decode, document)
  return is_json and type(value) == 'table' and value or {}
end

-- The indexes of a job's batch, {} if it has none.
local function batch_index_keys(job)
  local batch = job.batch and decode(job.batch).id
  return type(batch) == 'string' and index_keys('batch:' .. batch, job.owner) or {}
end

-- The indexes that a job stays in until it is removed: of all jobs, and of those of its batch.
local function lasting_index_keys(job)
  local keys = index_keys('all', job.owner)
  for _, key in ipairs(batch_index_keys(job)) do keys[#keys + 1] = key end
  return keys
end

-- A stored value as a number, nil unless it is a whole one of at most 15 digits.
local function whole_number(value)
  local digits = value and tostring(value)
  return digits and #digits <= 15 and digits:match('^%d+$') and tonumber(digits) or nil
end

-- Numbers that a record must have, with their defaults, and those that it may have.
local NUMBERS = {number = 0, work_units = 1, attempt = 0, max_attempts = 3, fence = 0, run_ms = 0, gpu_ms = 0,
  saved_gpu_ms = 0, lost_gpu_ms = 0, expected_gpu_ms = 0, num_gpus = 1, paused_ms = 0,
  created_ms = now, claimed_ms = now, lease_ms = 30000, retention_ms = 604800000}
local OPTIONAL_NUMBERS = {'started_ms', 'max_run_ms', 'max_queue_ms', 'schema_version', 'order_version',
  'num_gpus_since_ms'}

-- A record, nil if there is none. What is missing or broken has its default: an error would stop the sweep, or the
-- queue, for all jobs.
local function read(id)
  local job = read_hash(record_key(id))
  if not job then return nil end
  for name, default in pairs(NUMBERS) do
    if not whole_number(job[name]) then job[name] = default end
  end
  for _, name in ipairs(OPTIONAL_NUMBERS) do
    if not whole_number(job[name]) then job[name] = nil end
  end
  job.id, job.owner, job.status, job.task = id, job.owner or '', job.status or '', job.task or ''
  job.requirement = job.requirement or ''
  if not NUM_ABOVE[job.priority] then job.priority = 'normal' end
  return job
end

-- The GPU time in ms of all attempts of a job so far.
local function gpu_ms(job)
  local since_ms = math.max(job.claimed_ms, job.num_gpus_since_ms or 0)
  local running_ms = job.status == 'running' and math.max(0, now - since_ms) or 0
  return job.gpu_ms + running_ms * job.num_gpus
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
