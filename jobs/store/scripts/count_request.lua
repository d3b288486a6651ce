-- include: quotas, allow_when_full
-- Count a request of an owner, or refuse it. Each token bucket holds the requests of one second. The bucket is kept as
-- the time at which it is full again. A refused request takes no token from either bucket.
local full_at = {}
for _, scope in ipairs(SCOPES) do
  local rate = given.limits[scope .. '_requests_per_s']
  if rate then
    local key = 'longcat:rate' .. (scope == 'owner' and ':' .. given.owner or '')
    local token_ms = 1000 / rate
    local window_ms = math.max(1000, token_ms)
    local stored_ms = tonumber(redis.call('GET', key) or now)
    if stored_ms > now + 2 * window_ms then stored_ms = now end -- the clock stepped: no bucket is so empty
    local full_ms = math.max(now, stored_ms) + token_ms
    local excess_ms = full_ms - now - window_ms
    if excess_ms > token_ms / 2 then return limit_reached(scope .. '_requests_per_s', rate, excess_ms / 1000) end
    full_at[key] = full_ms
  end
end
for key, full_ms in pairs(full_at) do
  redis.call('SET', key, string.format('%.3f', full_ms), 'PX', math.ceil(full_ms - now) + 60000)
end
