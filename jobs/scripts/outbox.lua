-- Webhooks: each is written in the step that changes the job, so none is lost and none is made up. A delivery has the
-- record as it was then, and a name that the same event of the same job always has.

local EVENTS = {running = 'started', succeeded = 'succeeded', failed = 'failed', cancelled = 'cancelled'}

local function is_wanted(job, event)
  if not (event and job.webhook_url) then return false end
  if event == 'started' and tonumber(job.fence) > 1 then return false end -- it was told at the first start
  if not job.webhook_events then return true end
  for _, wanted in ipairs(cjson.decode(job.webhook_events)) do
    if wanted == event then return true end
  end
  return false
end

local function tell_webhook(job)
  local event = EVENTS[job.status]
  if not is_wanted(job, event) then return end
  local id = job.id .. '-' .. event
  redis.call('HSET', 'longcat:delivery:' .. id,
    'event', event, 'at_ms', now, 'attempt', 0, 'record', cjson.encode(job))
  redis.call('ZADD', 'longcat:outbox', now, id)
end

