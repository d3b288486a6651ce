-- include: call
-- Milliseconds by the clock of the Redis server, so that clocks of other machines do not matter. Tests pass their own.

local function server_time_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local now = given.now_ms or server_time_ms()

-- The first members of a sorted set whose score is a time that has passed.
local BATCH = 100
local function due(key)
  return redis.call('ZRANGE', key, '-inf', now, 'BYSCORE', 'LIMIT', 0, BATCH)
end
