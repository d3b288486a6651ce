-- include: record, allow_when_full
-- Queued jobs without a requirement, each followed by its order: a process of release 0.2.0 submitted them. All jobs up
-- to the number in `longcat:queue:checked` have one, or had started already. A call looks at some of the others, and
-- the next call continues.
local INDEX = 'longcat:index:queued'
local CHECKED = 'longcat:queue:checked'
local MOST_LOOKED_AT, BATCH_SIZE = 1000, 100
local checked = tonumber(redis.call('GET', CHECKED) or 0)
local last = tonumber(redis.call('GET', 'longcat:submitted') or 0)
for _ = 1, MOST_LOOKED_AT / BATCH_SIZE do
  if checked >= last then break end
  local above = '(' .. checked
  local batch = redis.call('ZRANGE', INDEX, above, '+inf', 'BYSCORE', 'LIMIT', 0, BATCH_SIZE, 'WITHSCORES')
  local found = {}
  for i = 1, #batch, 2 do
    local status, requirement, order = unpack(read_fields(batch[i], 'status', 'requirement', 'order'))
    if status == 'queued' and not requirement then
      found[#found + 1] = batch[i]
      found[#found + 1] = order or ''
    end
  end
  if #found > 0 then return found end
  checked = tonumber(batch[2 * BATCH_SIZE] or last)
  redis.call('SET', CHECKED, checked)
end
return {}
