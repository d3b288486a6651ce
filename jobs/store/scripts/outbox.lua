-- Webhooks. A delivery is written in the step that changes the job, so none is lost and none is made up; its id is the
-- same for the same event of the same job. It is removed with the job.
--
-- Deliveries wait in lines, one for each owner and host. Owners take turns, and so do the hosts of one owner. Both are
-- rotations, which consist of two sorted sets:
--   <rotation>:ready    members with a delivery that is due, by turn: the first is next, and then goes to the end
--   <rotation>:waiting  the other members, by the time in ms at which a delivery of theirs becomes due
-- So taking a delivery never reads those of owners and hosts whose turn it is not. A host is known here by a digest.
--
-- A host that did not answer several times in a row is paused: its deliveries wait, and use up no attempt. After the
-- pause they are sent one at a time, until it answers.

local EVENTS = {running = 'started', succeeded = 'succeeded', failed = 'failed', cancelled = 'cancelled'}
local CHANGING = {'status', 'attempt', 'progress', 'cancel_requested', 'group', 'started_ms',
                  'finished_ms', 'expires_ms',
  'error', 'result', 'timings_s'} -- the fields that clients see and that change after a job was begun
local OWNERS = 'longcat:outbox:owners'
local PAUSED = 'longcat:outbox:paused'
local FAILURES_TO_PAUSE = 5
local FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 10000, 600000
local HOST_MEMORY_MS = 86400000 -- how long failures of a host are remembered

local function delivery_key(id)
  return 'longcat:delivery:' .. id
end

local function failures_key(host)
  return 'longcat:outbox:failures:' .. host
end

local function hosts_of(owner)
  return 'longcat:outbox:hosts:' .. owner
end

local function deliveries_to(owner, host)
  return 'longcat:outbox:line:' .. owner .. ':' .. host
end

-- The deliveries that are being sent, as `<id>:<attempt>`, by the end of their leases.
local function in_flight_keys(owner, host)
  return {'longcat:outbox:in_flight:owner:' .. owner, 'longcat:outbox:in_flight:host:' .. host}
end

local function host_of(url)
  return redis.sha1hex(string.lower(url:match('^%w+://([^/?#]*)')))
end

local function first_score(key)
  return tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
end

local function paused_until(host)
  return tonumber(redis.call('ZSCORE', PAUSED, host) or 0)
end

-- Puts a member of a rotation where it belongs; one that was served goes to the end. Without `due_ms` it leaves.
local function place(rotation, member, due_ms, was_served)
  local ready, waiting = rotation .. ':ready', rotation .. ':waiting'
  if due_ms and due_ms <= now then
    redis.call('ZREM', waiting, member)
    if was_served or not redis.call('ZSCORE', ready, member) then
      redis.call('ZADD', ready, redis.call('INCR', 'longcat:outbox:turns'), member)
    end
    return
  end
  redis.call('ZREM', ready, member)
  if due_ms then
    redis.call('ZADD', waiting, due_ms, member)
  else
    redis.call('ZREM', waiting, member)
  end
end

-- Puts an owner's line to a host, and the owner, where they belong after a change.
local function place_line(owner, host, was_served)
  local hosts, due_ms = hosts_of(owner), first_score(deliveries_to(owner, host))
  place(hosts, host, due_ms and math.max(due_ms, paused_until(host)), was_served)
  local has_ready = redis.call('EXISTS', hosts .. ':ready') == 1
  place(OWNERS, owner, has_ready and now or first_score(hosts .. ':waiting'), was_served)
end

local function wake(rotation)
  for _, member in ipairs(due(rotation .. ':waiting')) do place(rotation, member, now) end
end

local function schedule(id, owner, host, due_ms)
  redis.call('ZADD', 'longcat:outbox:due', due_ms, id)
  redis.call('ZADD', deliveries_to(owner, host), due_ms, id)
end

local function leave_line_to(id, owner, host)
  redis.call('ZREM', deliveries_to(owner, host), id)
  place_line(owner, host)
end

local function remove_delivery(id)
  local owner, host = unpack(redis.call('HMGET', delivery_key(id), 'owner', 'host'))
  redis.call('DEL', delivery_key(id))
  redis.call('ZREM', 'longcat:outbox', id)
  redis.call('ZREM', 'longcat:outbox:due', id)
  if host then leave_line_to(id, owner, host) end
end

local function remove_deliveries_of(job)
  if not job.webhook_url then return end
  for _, event in pairs(EVENTS) do remove_delivery(job.id .. '-' .. event) end
end

local function add_delivery(id, job)
  local host = host_of(job.webhook_url)
  redis.call('HSET', delivery_key(id), 'job', job.id, 'owner', job.owner, 'host', host)
  schedule(id, job.owner, host, now)
  place_line(job.owner, host)
end

local function is_wanted(job, event)
  if not (event and job.webhook_url) then return false end
  if event == 'started' and tonumber(job.fence) > 1 then return false end -- it was told at the first start
  if not job.webhook_events then return true end
  for _, wanted in ipairs(cjson.decode(job.webhook_events)) do
    if wanted == event then return true end
  end
  return false
end

-- A webhook shows the job as it was at the event. The record of an ended job stays as it is; of a job that begins,
-- what will change is kept with the delivery.
local function tell_webhook(job)
  local event = EVENTS[job.status]
  if not is_wanted(job, event) then return end
  local id = job.id .. '-' .. event
  redis.call('HSET', delivery_key(id), 'event', event, 'at_ms', now, 'attempt', 0)
  if not ENDED[job.status] then
    local before = {}
    for _, name in ipairs(CHANGING) do before[name] = job[name] end
    redis.call('HSET', delivery_key(id), 'before', cjson.encode(before))
  end
  add_delivery(id, job)
end

-- The job of a delivery as it was at the event, nil if it is gone.
local function job_at_event(delivery)
  local job = read(delivery.job)
  if not job then return nil end
  if delivery.record then return cjson.decode(delivery.record) end -- as an older release kept it
  if delivery.before then
    local before = cjson.decode(delivery.before)
    for _, name in ipairs(CHANGING) do job[name] = before[name] end
  end
  return job
end

