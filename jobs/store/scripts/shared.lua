-- What every transition shares; it is put in front of each script. A script is given one argument, a JSON object
-- (`given`), and keeps these keys (`jobs` means ids of jobs):
--
--   longcat:job:<id>                hash     the record
--   longcat:events:<id>             stream   its changes, the last 200 or so
--   longcat:index:<status>          zset     jobs in a status, or `all`, by order of submission;
--   longcat:index:<status>:<owner>           the same of one owner
--   longcat:queued:<priority>       zset     queued jobs, by order of submission
--   longcat:returned:<priority>     zset     those of them that were begun before and put back
--   longcat:line:<priority>:<owner> zset     the others, of one owner
--   longcat:turns:<priority>        zset     owners with a line, by turn
--   longcat:served:<priority>       zset     owners without one whose next turn is still to come
--   longcat:turn:<priority>         string   whose turn it is
--   longcat:stored:<day>[:<owner>]  counter  bytes of inputs that were stored for jobs on this day
--   longcat:rate[:<owner>]          string   by when, in ms, all requests so far are paid for
--   longcat:queued_work             counter  what all queued jobs are, as `forecast.lua` counts it
--   longcat:runs:<task>             list     work and ms of the latest jobs of a task, or of `any`
--   longcat:pace:<task>             hash     the line through those: ms of each job, and for a unit of its work
--   longcat:measures                hash     sums and distributions, see `measures.lua`
--   longcat:delivery:<id>           hash     a webhook that is to be sent
--   longcat:deliveries:<job>        list     how each attempt for a job went
--   longcat:outbox:due              zset     all deliveries, by the time in ms when they are due
--   longcat:outbox:line:<owner>:<host>       those of one owner to one host, see `outbox.lua`
--   longcat:outbox:owners:<state>   zset     owners that are `ready` by turn, or `waiting` by time
--   longcat:outbox:hosts:<owner>:<state>     the same of an owner's hosts
--   longcat:outbox:turns            counter  numbers the turns
--   longcat:outbox:in_flight:<kind>:<name>   deliveries being sent for an owner or to a host, by the end of the lease
--   longcat:outbox:failures:<host>  counter  attempts in a row that a host did not answer
--   longcat:outbox:paused           zset     hosts that are paused, by the time in ms until which they are
--   longcat:outbox                  zset     deliveries that an older release wrote, by the time when they are due
--   longcat:queue_deadlines         zset     jobs never begun, by the time in ms when they have waited too long
--   longcat:leases                  zset     jobs held, by the time in ms when the lease runs out
--   longcat:claims:<token>          string   the job that a claim took, while its answer may be asked for again
--   longcat:expiring                zset     ended jobs, by the time in ms when they are to be removed
--   longcat:removals                zset     ids whose files are to be looked through, by the time in ms from which on
--                                            none is stored: they ended or are gone; or they are reserved until then
--   longcat:settling                zset     those looked through, by the time in ms when they are to be once more,
--                                            since what was on its way to the storage has arrived by then
--   longcat:deletes:<token>         string   that a deletion was done, while its answer may be asked for again
--   longcat:submitted               counter  numbers jobs in order of submission
--   longcat:idempotency:<hash>      hash     the job that answers an idempotency key, and what was asked for
--   longcat:swept                   string   when the last sweep was, in ms
--
-- Keys are made from ids here, so this is not for Redis Cluster. In a record, `fence` counts the claims, `attempt`
-- those that were not given back by a drain, and `token` is that of the claim that holds the job or let go of it
-- by itself: a sweep that takes the job away removes it. For `makes_way` and `way_made` see `preemption.lua`.

local given = cjson.decode(ARGV[1])

local NOT_FOUND = redis.error_reply('JOB_NOT_FOUND')
local HAS_ENDED = redis.error_reply('JOB_ENDED')
local LEASE_LOST = redis.error_reply('LEASE_LOST')
local KEY_REUSED = redis.error_reply('KEY_REUSED')

local ENDED = {succeeded = true, failed = true, cancelled = true}
local HELD = {running = true, uploading = true}
local BATCH = 100 -- how many members one script call handles

local function clock_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local now = given.now_ms or clock_ms()

local function record_key(id)
  return 'longcat:job:' .. id
end

local function index_keys(status, owner)
  return {'longcat:index:' .. status, 'longcat:index:' .. status .. ':' .. owner}
end

-- A hash as a table of strings, nil if there is none.
local function read_hash(key)
  local flat = redis.call('HGETALL', key)
  if #flat == 0 then return nil end
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

-- The record of a job, nil if there is none.
local function read(id)
  return read_hash(record_key(id))
end

-- The first members of a sorted set whose time has come.
local function due(key)
  return redis.call('ZRANGE', key, '-inf', now, 'BYSCORE', 'LIMIT', 0, BATCH)
end

-- The record if the caller may see it: to an owner, the jobs of others are not there.
local function visible(id)
  local job = read(id)
  if job and (not given.owner or job.owner == given.owner) then return job end
end

-- Whether there was a job with this id, or a reservation for one, and there never will be again.
local function is_gone(id)
  local since = redis.call('ZSCORE', 'longcat:removals', id)
  local is_listed = since and tonumber(since) <= now or redis.call('ZSCORE', 'longcat:settling', id)
  return is_listed and not read(id)
end

-- Sets fields of the record; false removes one.
local function write(job, fields)
  for name, value in pairs(fields) do
    if value then
      redis.call('HSET', record_key(job.id), name, value)
    else
      redis.call('HDEL', record_key(job.id), name)
    end
    job[name] = value or nil
  end
end

