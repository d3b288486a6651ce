-- include: call
-- Milliseconds since 1970. They come from the clock of the Redis server, so clocks of other machines do not matter.
-- When that clock steps, by hand or because a replica took over, `now` does not: a step would end leases, fail queued
-- jobs and remove ended ones.
--
-- Every sweep stores what the server's clock showed (`server_ms`) and what `now` was. Since then, `now` advances with
-- the server's clock, but never backwards, and never by more than `longest_ms`: a process that sweeps knows how long
-- ago its last sweep was. A difference between the two is made up for slowly.
--
-- A stall of Redis looks like a step: the first sweep after it was sent before, and allows for the time until then.
-- So a sweep also says what `now` must be at least (`least_ms`), by the clock of its process since an earlier reply.
local CLOCK = 'longcat:clock'
local LONGEST_MS = 60000 -- for callers that do not sweep
local CATCH_UP = 0.1 -- ms for each ms

local DAY_MS = 86400000

local function server_time_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function steady_time_ms(server_ms)
  local stored_server_ms, stored_now_ms = unpack(redis.call('HMGET', CLOCK, 'server_ms', 'now_ms'))
  if not stored_now_ms then return server_ms end
  local passed_ms = math.max(0, math.min(server_ms - stored_server_ms, given.longest_ms or LONGEST_MS))
  local time_ms = stored_now_ms + passed_ms
  local most_ms = passed_ms * CATCH_UP
  return math.floor(time_ms + math.max(-most_ms, math.min(server_ms - time_ms, most_ms)))
end

-- Tests pass their own time.
local server_ms = not given.now_ms and server_time_ms()
local now = given.now_ms or steady_time_ms(server_ms)
-- Time that passed without a chance to renew a lease.
local missed_ms = math.max(0, math.ceil((given.least_ms or now) - now))
now = now + missed_ms

-- Store both clocks. Only a sweep may: other callers do not know how much time can have passed.
local function store_clock()
  if server_ms then redis.call('HSET', CLOCK, 'server_ms', server_ms, 'now_ms', now) end
end

-- The first members of a sorted set whose score is a time that has passed.
local BATCH = 100
local function due(key)
  return redis.call('ZRANGE', key, '-inf', now, 'BYSCORE', 'LIMIT', 0, BATCH)
end
