-- include: clock, record
-- Webhook deliveries. A delivery is written in the step that changes the job, so no event is lost or invented. Its id
-- is the same for the same event of the same job. It is removed with the job.
--
-- Deliveries wait in one queue for each owner and host. Owners take turns, and so do the hosts of one owner (round
-- robin). Each rotation consists of two sorted sets:
--   <rotation>:ready    members with a delivery that is due, in the order of their turns
--   <rotation>:waiting  the other members, by the time in ms at which a delivery of theirs becomes due
-- So taking a delivery never reads those of owners and hosts whose turn it is not. Hosts are stored as digests.
--
-- A host that does not respond several times in a row is paused: its deliveries wait, and use up no attempt. After the
-- pause they are sent one at a time, until it responds.

local EVENTS = {running = 'started', succeeded = 'succeeded', failed = 'failed', cancelled = 'cancelled'}
-- Fields that clients see and that change after a job started.
local CHANGING = {
  'status', 'attempt', 'progress', 'cancel_requested', 'group', 'started_ms', 'finished_ms', 'expires_ms', 'error',
  'result', 'timings_s', 'warnings', 'gpu_ms',
}
local DUE = 'longcat:outbox:due'
local OWNERS = 'longcat:outbox:owners'
local PAUSED = 'longcat:outbox:paused'
local FAILURES_TO_PAUSE = 5
local FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 10000, 600000
local KEEP_FAILURES_MS = 86400000

local function delivery_key(id)
  return 'longcat:delivery:' .. id
end

local function failures_key(host)
  return 'longcat:outbox:failures:' .. host
end

local function hosts_key(owner)
  return 'longcat:outbox:hosts:' .. owner
end

local function delivery_queue_key(owner, host)
  return 'longcat:outbox:queue:' .. owner .. ':' .. host
end

-- Deliveries that are being sent for an `owner` or to a `host`, as `<id>:<attempt>`, by the end of their leases.
local function in_flight_key(scope, name)
  return 'longcat:outbox:in_flight:' .. scope .. ':' .. name
end

local function in_flight_keys(owner, host)
  return {in_flight_key('owner', owner), in_flight_key('host', host)}
end

local function host_of(url)
  return redis.sha1hex(string.lower(url:match('^%w+://([^/?#]*)') or ''))
end

local function first_score(key)
  return tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
end

local function paused_until(host)
  return tonumber(redis.call('ZSCORE', PAUSED, host) or 0)
end

-- Move a member of a rotation to `ready` or `waiting`; one that had its turn goes to the end. Without `due_ms`, remove
-- it.
local function update_rotation(rotation, member, due_ms, had_turn)
  local ready, waiting = rotation .. ':ready', rotation .. ':waiting'
  if due_ms and due_ms <= now then
    redis.call('ZREM', waiting, member)
    if had_turn or not redis.call('ZSCORE', ready, member) then
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

-- Update both rotations after a change of an owner's queue to a host.
local function update_rotations(owner, host, had_turn)
  local hosts, due_ms = hosts_key(owner), first_score(delivery_queue_key(owner, host))
  update_rotation(hosts, host, due_ms and math.max(due_ms, paused_until(host)), had_turn)
  local has_ready = redis.call('EXISTS', hosts .. ':ready') == 1
  update_rotation(OWNERS, owner, has_ready and now or first_score(hosts .. ':waiting'), had_turn)
end

-- Move members whose time has come to `ready`.
local function wake(rotation)
  for _, member in ipairs(due(rotation .. ':waiting')) do update_rotation(rotation, member, now) end
end

local function schedule(id, owner, host, due_ms)
  redis.call('ZADD', DUE, due_ms, id)
  redis.call('ZADD', delivery_queue_key(owner, host), due_ms, id)
end

local function unschedule(id, owner, host)
  redis.call('ZREM', DUE, id)
  redis.call('ZREM', delivery_queue_key(owner, host), id)
  update_rotations(owner, host)
end

local function remove_delivery(id)
  local owner, host = unpack(redis.call('HMGET', delivery_key(id), 'owner', 'host'))
  redis.call('DEL', delivery_key(id))
  if host then unschedule(id, owner, host) end
end

local function remove_deliveries(job)
  if not job.webhook_url then return end
  for _, event in pairs(EVENTS) do remove_delivery(job.id .. '-' .. event) end
end

local function is_subscribed(job, event)
  if not (event and job.webhook_url) then return false end
  if event == 'started' and tonumber(job.fence) > 1 then return false end -- sent at the first start
  if not job.webhook_events then return true end
  for _, wanted in ipairs(decode(job.webhook_events)) do
    if wanted == event then return true end
  end
  return false
end

-- Write the delivery for a job's new status, if that is an event that its client wants. A webhook shows the job as it
-- was at the event: the record of an ended job never changes, and of a started job, the fields that change are copied.
local function add_delivery(job)
  local event = EVENTS[job.status]
  if not is_subscribed(job, event) then return end
  local id, host = job.id .. '-' .. event, host_of(job.webhook_url)
  redis.call('HSET', delivery_key(id), 'schema_version', 1, 'event', event, 'at_ms', now, 'attempt', 0, 'job', job.id,
    'owner', job.owner, 'host', host)
  if not ENDED[job.status] then
    local snapshot = {}
    for _, name in ipairs(CHANGING) do snapshot[name] = job[name] end
    redis.call('HSET', delivery_key(id), 'snapshot', cjson.encode(snapshot))
  end
  schedule(id, job.owner, host, now)
  update_rotations(job.owner, host)
end

-- The job of a delivery as it was at the event, nil if it was removed.
local function job_at_event(delivery)
  local job = read(delivery.job or '')
  if job and delivery.snapshot then
    local snapshot = decode(delivery.snapshot)
    for _, name in ipairs(CHANGING) do job[name] = snapshot[name] end
  end
  return job
end
