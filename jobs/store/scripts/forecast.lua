-- How long a job will take, judged by what the latest ones of the same task took, else of any task. `work` counts the
-- pixels of all frames in all steps. Jobs of just this work say it best; where there were none, the line through those
-- of other sizes does: some ms for every job, and some for a unit of its work, both medians, so that one job that took
-- far longer moves nothing.

local LATEST = 21
local REFINED_SHARE = 0.1 -- of the refinement's steps, those that lie below its noise level; as `worker.rank.progress`
local CACHED_SHARE = 0.6 -- of a balanced job's work, what is done; others report 0.55 to 0.65

local function work_of(order)
  order = order.plan or order -- orders of 0.1 have no plan of their own
  local passes = order.guidance_scale > 1 and 2 or 1
  local frames = order.num_frames * order.num_segments
  local work = order.height * order.width * frames * order.num_inference_steps * passes
  local second = order.refinement
  if type(order.step_cache) == 'number' then work = work * CACHED_SHARE end
  if order.task == 'refine' then work = 0 end
  if type(second) == 'table' then
    local growth = second.spatial_only and 1 or 2
    work = work + second.height * second.width * frames * growth * second.num_inference_steps * REFINED_SHARE
  end
  return string.format('%.0f', work)
end

local function median(values)
  table.sort(values)
  return values[math.ceil(#values / 2)]
end

-- The latest jobs of a task, as {work, ms}.
local function runs_of(task)
  local runs = redis.call('LRANGE', 'longcat:runs:' .. task, 0, -1)
  for i, run in ipairs(runs) do
    local work, ms = run:match('(%S+) (%S+)')
    runs[i] = {work = tonumber(work), ms = tonumber(ms)}
  end
  return runs
end

-- Theil and Sen's line through them: ms of any job, and ms for a unit of work.
local function line_through(runs)
  local slopes, paces = {}, {}
  for i, run in ipairs(runs) do
    paces[i] = run.ms / run.work
    for j = 1, i - 1 do
      local work = run.work - runs[j].work
      if work ~= 0 then slopes[#slopes + 1] = (run.ms - runs[j].ms) / work end
    end
  end
  local slope, rests = math.max(0, median(slopes) or 0), {}
  for i, run in ipairs(runs) do rests[i] = run.ms - slope * run.work end
  local base = median(rests)
  if #slopes == 0 or base < 0 then return 0, median(paces) end
  return base, slope
end

local function learn_pace(job, ran_ms)
  for _, task in ipairs({job.task, 'any'}) do
    local key = 'longcat:runs:' .. task
    redis.call('LPUSH', key, job.work .. ' ' .. ran_ms)
    redis.call('LTRIM', key, 0, LATEST - 1)
    local base, slope = line_through(runs_of(task))
    redis.call('HSET', 'longcat:pace:' .. task, 'base', base, 'slope', string.format('%.9g', slope))
  end
end

-- Milliseconds that so much work of a task takes, nil if none of it was ever seen to end.
local function expected_ms(task, work)
  local alike = {}
  for _, run in ipairs(runs_of(task)) do
    if run.work == tonumber(work) then alike[#alike + 1] = run.ms end
  end
  if #alike > 0 then return median(alike) end
  local base, slope = unpack(redis.call('HMGET', 'longcat:pace:' .. task, 'base', 'slope'))
  return base and base + slope * work
end

-- Milliseconds until running jobs are done, all together, and how many those are.
local function still_running()
  local ids, left_ms = redis.call('ZRANGE', 'longcat:index:running', 0, -1), 0
  for _, id in ipairs(ids) do
    local task, work, claimed_ms, progress = unpack(
      redis.call('HMGET', record_key(id), 'task', 'work', 'claimed_ms', 'progress')
    )
    local eta_s = progress and cjson.decode(progress).eta_s
    if type(eta_s) == 'number' then
      left_ms = left_ms + eta_s * 1000
    else
      local expected = expected_ms(task, work) or expected_ms('any', work)
      left_ms = left_ms + math.max(0, expected - (now - claimed_ms))
    end
  end
  return left_ms, #ids
end

-- Milliseconds until a queued job at this place will have ended, nil if no job was ever seen to end.
local function ends_in_ms(job, place)
  local own_ms = expected_ms(job.task, job.work) or expected_ms('any', job.work)
  if not own_ms then return nil end
  local groups = math.max(1, redis.call('SCARD', 'longcat:groups'))
  local left_ms, running = still_running()
  local wait_ms = 0
  if place + running > groups then
    local mean_work = redis.call('GET', 'longcat:queued_work') / redis.call('ZCARD', 'longcat:index:queued')
    wait_ms = (left_ms + (place - 1) * expected_ms('any', mean_work)) / groups
  end
  return math.floor(wait_ms + own_ms)
end

