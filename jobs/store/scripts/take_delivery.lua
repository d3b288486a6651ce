-- Leases the delivery whose turn it is for `lease_ms`, and answers its id, its fields and its job as it was at the
-- event. An owner has at most `max_per_owner` deliveries in flight, a host `max_per_host`.

-- Puts what an older release wrote into the lines.
local function adopt()
  for _, id in ipairs(due('longcat:outbox')) do
    redis.call('ZREM', 'longcat:outbox', id)
    local record = redis.call('HGET', delivery_key(id), 'record')
    if record then add_delivery(id, cjson.decode(record)) end
  end
end

local function num_in_flight(key)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  return redis.call('ZCARD', key)
end

local function has_room(host)
  local is_probed = tonumber(redis.call('GET', failures_key(host)) or 0) >= FAILURES_TO_PAUSE
  return num_in_flight(in_flight_keys('', host)[2]) < (is_probed and 1 or given.max_per_host)
end

-- The host of this owner whose turn it is, nil if none may be sent to. Hosts that are paused leave the turns.
local function next_host(owner)
  if num_in_flight(in_flight_keys(owner, '')[1]) >= given.max_per_owner then return nil end
  wake(hosts_of(owner))
  for _, host in ipairs(redis.call('ZRANGE', hosts_of(owner) .. ':ready', 0, BATCH - 1)) do
    if paused_until(host) > now then
      place_line(owner, host)
    elseif has_room(host) then
      return host
    end
  end
end

local function next_delivery()
  for _, owner in ipairs(redis.call('ZRANGE', OWNERS .. ':ready', 0, -1)) do
    local host = next_host(owner)
    if host then return redis.call('ZRANGE', deliveries_to(owner, host), 0, 0)[1], owner, host end
  end
end

adopt()
wake(OWNERS)
while true do
  local id, owner, host = next_delivery()
  if not id then return false end
  local delivery = read_hash(delivery_key(id))
  local job = delivery and job_at_event(delivery)
  if job then
    local attempt = redis.call('HINCRBY', delivery_key(id), 'attempt', 1)
    for _, key in ipairs(in_flight_keys(owner, host)) do
      redis.call('ZADD', key, now + given.lease_ms, id .. ':' .. attempt)
      redis.call('PEXPIRE', key, given.lease_ms)
    end
    schedule(id, owner, host, now + given.lease_ms)
    place_line(owner, host, true)
    return {id, delivery.event, delivery.at_ms, attempt, host, cjson.encode(job)}
  end
  remove_delivery(id) -- an older release removes a job without its deliveries
  leave_line_to(id, owner, host)
end
