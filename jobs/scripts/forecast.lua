-- How long a job will take, judged by what the latest ones took. `work` counts the pixels of all frames in all steps;
-- the pace is milliseconds for a unit of it: the median of the latest jobs of the same task, else of any task.

local LATEST = 21

local function work_of(order)
  local passes = order.guidance_scale > 1 and 2 or 1
  local frames = order.num_frames * order.num_segments
  return string.format('%.0f', order.height * order.width * frames * order.num_inference_steps * passes)
end

local function learn_pace(job, ran_ms)
  for _, task in ipairs({job.task, 'any'}) do
    local key = 'longcat:paces:' .. task
    redis.call('LPUSH', key, string.format('%.9g', ran_ms / job.work))
    redis.call('LTRIM', key, 0, LATEST - 1)
  end
end

local function pace_of(task)
  local paces = redis.call('LRANGE', 'longcat:paces:' .. task, 0, -1)
  if #paces == 0 then return nil end
  for i, pace in ipairs(paces) do paces[i] = tonumber(pace) end
  table.sort(paces)
  return paces[math.ceil(#paces / 2)]
end

-- Milliseconds until running jobs are done, all together, and how many those are.
local function still_running(pace)
  local ids, left_ms = redis.call('ZRANGE', 'longcat:index:running', 0, -1), 0
  for _, id in ipairs(ids) do
    local work, claimed_ms, progress = unpack(
      redis.call('HMGET', record_key(id), 'work', 'claimed_ms', 'progress')
    )
    local eta_s = progress and cjson.decode(progress).eta_s
    if type(eta_s) == 'number' then
      left_ms = left_ms + eta_s * 1000
    else
      left_ms = left_ms + math.max(0, work * pace - (now - claimed_ms))
    end
  end
  return left_ms, #ids
end

-- Milliseconds until a queued job at this place will have ended, nil if no job was ever seen to end.
local function ends_in_ms(job, place)
  local pace = pace_of('any')
  if not pace then return nil end
  local groups = math.max(1, redis.call('SCARD', 'longcat:groups'))
  local left_ms, running = still_running(pace)
  local wait_ms = 0
  if place + running > groups then
    local mean_work = redis.call('GET', 'longcat:queued_work') / redis.call('ZCARD', 'longcat:index:queued')
    wait_ms = (left_ms + (place - 1) * mean_work * pace) / groups
  end
  return math.floor(wait_ms + job.work * (pace_of(job.task) or pace))
end

