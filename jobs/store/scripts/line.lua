-- The waiting line. Priorities come one after the other. Within one, owners take turns, a job at a time (start-time
-- fair queueing): an owner's turn is a virtual time, which grows by one with each of his jobs that is begun; who
-- comes anew begins at the turn that is served now. Jobs that were put back come before all, since they had been
-- chosen before.

local PRIORITIES = {'high', 'normal', 'low'}

local function line_key(priority, owner)
  return 'longcat:line:' .. priority .. ':' .. owner
end

local function turn_now(priority)
  return tonumber(redis.call('GET', 'longcat:turn:' .. priority) or 0)
end

local function line_up(job)
  redis.call('ZADD', 'longcat:queued:' .. job.priority, job.number, job.id)
  redis.call('INCRBY', 'longcat:queued_work', job.work)
  if job.started_ms then
    redis.call('ZADD', 'longcat:returned:' .. job.priority, job.number, job.id)
    return
  end
  redis.call('ZADD', line_key(job.priority, job.owner), job.number, job.id)
  if not redis.call('ZSCORE', 'longcat:turns:' .. job.priority, job.owner) then
    local next_turn = tonumber(redis.call('ZSCORE', 'longcat:served:' .. job.priority, job.owner) or 0)
    redis.call('ZREM', 'longcat:served:' .. job.priority, job.owner)
    local turn = math.max(next_turn, turn_now(job.priority))
    redis.call('ZADD', 'longcat:turns:' .. job.priority, turn, job.owner)
  end
end

-- Takes a job out of the line, if it is in it; an owner without a line keeps his turn for when he comes again.
local function leave_line(job)
  local priority, owner = job.priority, job.owner
  redis.call('ZREM', 'longcat:queue_deadlines', job.id)
  if redis.call('ZREM', 'longcat:queued:' .. priority, job.id) == 1 then
    redis.call('DECRBY', 'longcat:queued_work', job.work)
  end
  redis.call('ZREM', 'longcat:returned:' .. priority, job.id)
  local line = line_key(priority, owner)
  if redis.call('ZREM', line, job.id) == 1 and redis.call('EXISTS', line) == 0 then
    redis.call('ZADD', 'longcat:served:' .. priority, redis.call('ZSCORE', 'longcat:turns:' .. priority, owner), owner)
    redis.call('ZREM', 'longcat:turns:' .. priority, owner)
  end
end

-- A job is begun: if it was its owner's turn, his next one is after that of everybody who waits now.
local function take_turn(job)
  local turns, served = 'longcat:turns:' .. job.priority, 'longcat:served:' .. job.priority
  if redis.call('ZSCORE', line_key(job.priority, job.owner), job.id) then
    local turn = redis.call('ZINCRBY', turns, 1, job.owner) - 1
    local now_served = math.max(turn, turn_now(job.priority))
    redis.call('SET', 'longcat:turn:' .. job.priority, now_served)
    redis.call('ZREMRANGEBYSCORE', served, '-inf', now_served)
  end
  leave_line(job)
end

-- The first of an owner's jobs whose turn has come, of those owners that may begin one; at equal turns the job that
-- was submitted first.
local function whose_turn(priority)
  local owners = redis.call('ZRANGE', 'longcat:turns:' .. priority, 0, -1, 'WITHSCORES')
  local best, best_number, best_turn
  for i = 1, #owners, 2 do
    if best and tonumber(owners[i + 1]) > best_turn then break end
    local id, number = unpack(redis.call('ZRANGE', line_key(priority, owners[i]), 0, 0, 'WITHSCORES'))
    if (not best or tonumber(number) < best_number) and may_begin(id) then
      best, best_number, best_turn = id, tonumber(number), tonumber(owners[i + 1])
    end
  end
  return best
end

-- The id of the job that is next, nil if there is none that may begin.
local function next_in_line()
  for _, priority in ipairs(PRIORITIES) do
    for _, id in ipairs(redis.call('ZRANGE', 'longcat:returned:' .. priority, 0, -1)) do
      if may_begin(id) then return id end
    end
    local id = whose_turn(priority)
    if id then return id end
  end
end

-- How many jobs come before this one in the lines of all owners of its priority.
local function ahead_by_turns(job)
  local turns = 'longcat:turns:' .. job.priority
  local rank = redis.call('ZRANK', line_key(job.priority, job.owner), job.id)
  local mine = redis.call('ZSCORE', turns, job.owner) + rank
  local owners = redis.call('ZRANGE', turns, '-inf', mine, 'BYSCORE', 'WITHSCORES')
  local ahead = rank
  for i = 1, #owners, 2 do
    if owners[i] ~= job.owner then
      local line = line_key(job.priority, owners[i])
      local earlier = mine - owners[i + 1]
      local _, rival = unpack(redis.call('ZRANGE', line, earlier, earlier, 'WITHSCORES'))
      ahead = ahead + math.min(earlier, redis.call('ZCARD', line))
      if rival and tonumber(rival) < tonumber(job.number) then ahead = ahead + 1 end
    end
  end
  return ahead
end

-- 1 for the job that is next if every owner may begin one.
local function place_in_line(job)
  local place = 1
  for _, priority in ipairs(PRIORITIES) do
    if priority == job.priority then break end
    place = place + redis.call('ZCARD', 'longcat:queued:' .. priority)
  end
  local returned = 'longcat:returned:' .. job.priority
  local rank = redis.call('ZRANK', returned, job.id)
  if rank then return place + rank end
  return place + redis.call('ZCARD', returned) + ahead_by_turns(job)
end

