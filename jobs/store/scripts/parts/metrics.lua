-- Counters in the hash `longcat:metrics`, in fields `<name>|<label>`. They count changes of jobs in the step that makes
-- the change, so each change counts once, whichever process makes it.

local function count(name, label, amount)
  redis.call('HINCRBYFLOAT', 'longcat:metrics', name .. '|' .. label, amount or 1)
end

local function observe(name, label, value)
  count(name .. '_sum', label, value)
  count(name .. '_count', label)
end
