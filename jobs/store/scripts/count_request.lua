-- Counts a request of an owner, or refuses it. Each bucket holds what one second gives; a refused request is not
-- counted, so neither bucket is drained by what the other one refuses.
local paid = {}
for i, whose in ipairs({'owner', 'total'}) do
  local rate = given.limits[whose .. '_requests_per_s']
  if rate then
    local key = i == 1 and 'longcat:rate:' .. given.owner or 'longcat:rate'
    local cost_ms = 1000 / rate
    local until_ms = math.max(now, tonumber(redis.call('GET', key) or now)) + cost_ms
    local early_ms = until_ms - now - math.max(1000, cost_ms)
    if early_ms > cost_ms / 2 then return reached(whose .. '_requests_per_s', rate, early_ms / 1000) end
    paid[key] = until_ms
  end
end
for key, until_ms in pairs(paid) do
  redis.call('SET', key, string.format('%.3f', until_ms), 'PX', math.ceil(until_ms - now) + 60000)
end
