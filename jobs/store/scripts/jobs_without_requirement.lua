-- include: queue, allow_when_full
-- Queued jobs without a requirement, each followed by its order: a process of release 0.2.0 submitted them. All jobs up
-- to the number in `longcat:queue:checked` have one, or had started already.
local INDEX = 'longcat:index:queued'
local CHECKED = 'longcat:queue:checked'
local checked = tonumber(redis.call('GET', CHECKED) or 0)
local last = tonumber(redis.call('GET', 'longcat:submitted') or 0)
while checked < last do
  local above = '(' .. checked
  local batch = redis.call('ZRANGE', INDEX, above, '+inf', 'BYSCORE', 'LIMIT', 0, 100, 'WITHSCORES')
  local found = {}
  for i = 1, #batch, 2 do
    local status, requirement, order = unpack(read_fields(batch[i], 'status', 'requirement', 'order'))
    if status == 'queued' and not requirement then
      found[#found + 1] = batch[i]
      found[#found + 1] = order or ''
    end
  end
  if #found > 0 then return found end
  checked = tonumber(batch[200] or last)
  redis.call('SET', CHECKED, checked)
end
return {}
