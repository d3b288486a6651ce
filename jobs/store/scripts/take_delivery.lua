-- include: outbox, allow_when_full
-- Lease the next delivery for `lease_ms`. Return its id, event, time, attempt, host, and its job as it was at the
-- event; false if none may be sent now. At most `max_per_owner` deliveries of an owner and `max_per_host` to a host
-- are in flight.

local function num_in_flight(key)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  return redis.call('ZCARD', key)
end

local function may_send_to(host)
  local is_probed = tonumber(redis.call('GET', failures_key(host)) or 0) >= FAILURES_TO_PAUSE
  return num_in_flight(in_flight_key('host', host)) < (is_probed and 1 or given.max_per_host)
end

-- The host of this owner whose turn it is, nil if there is none to send to. Paused hosts leave the rotation.
local function next_host(owner)
  if num_in_flight(in_flight_key('owner', owner)) >= given.max_per_owner then return nil end
  wake(hosts_key(owner))
  for _, host in ipairs(redis.call('ZRANGE', hosts_key(owner) .. ':ready', 0, BATCH - 1)) do
    if paused_until(host) > now then
      update_rotations(owner, host)
    elseif may_send_to(host) then
      return host
    end
  end
end

local function next_delivery()
  for _, owner in ipairs(redis.call('ZRANGE', OWNERS .. ':ready', 0, -1)) do
    local host = next_host(owner)
    if host then return redis.call('ZRANGE', delivery_queue_key(owner, host), 0, 0)[1], owner, host end
  end
end

-- The next delivery with its job as it was at the event. Those whose delivery or job is gone are dropped.
local function next_readable_delivery()
  while true do
    local id, owner, host = next_delivery()
    if not id then return nil end
    local delivery = read_hash(delivery_key(id))
    local job = delivery and job_at_event(delivery)
    if job then return id, owner, host, delivery, job end
    redis.call('DEL', delivery_key(id))
    unschedule(id, owner, host)
  end
end

wake(OWNERS)
local id, owner, host, delivery, job = next_readable_delivery()
if not id then return false end
if not whole_number(delivery.attempt) then redis.call('HSET', delivery_key(id), 'attempt', 0) end
local attempt = redis.call('HINCRBY', delivery_key(id), 'attempt', 1)
for _, key in ipairs(in_flight_keys(owner, host)) do
  redis.call('ZADD', key, now + given.lease_ms, id .. ':' .. attempt)
  redis.call('PEXPIRE', key, given.lease_ms)
end
schedule(id, owner, host, now + given.lease_ms)
update_rotations(owner, host, true)
return {id, delivery.event or '', tostring(delivery.at_ms or now), attempt, host, cjson.encode(job)}
