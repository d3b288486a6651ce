-- A job of low priority makes way for one of high priority that has waited for long enough and that no idle group
-- will take: its holder lets go of it at the next step. Each waiting job has one make way at most, so that no two
-- groups stop for the same; it says which in `way_made`, and that one says so in `makes_way`.

-- What a group says of itself, {} if it is not heard of.
local function group_status(name)
  local status = name and redis.call('GET', 'longcat:group:' .. name)
  return status and cjson.decode(status) or {}
end

local function idle_groups()
  local count = 0
  for _, name in ipairs(redis.call('SMEMBERS', 'longcat:groups')) do
    if group_status(name).state == 'ready' then count = count + 1 end
  end
  return count
end

-- The first job that this one would make way for; those that idle groups will take, and those that others make way
-- for, are none.
local function who_waits_for(job, after_ms)
  local idle = idle_groups()
  for _, id in ipairs(redis.call('ZRANGE', 'longcat:queued:high', 0, -1)) do
    local created_ms, way_made = unpack(redis.call('HMGET', record_key(id), 'created_ms', 'way_made'))
    if now - created_ms < after_ms then return nil end -- and those behind it have waited even less
    if may_begin(id, job) then
      if idle == 0 and not way_made then return id end
      idle = math.max(0, idle - 1)
    end
  end
end

-- Whether this running job has to make way. Once it has to, it is not asked again: its group may have stopped already.
local function makes_way(job, after_ms)
  if job.makes_way then return true end
  local has_gpus = job.status == 'running' and group_status(job.group).job == job.id
  local id = job.priority == 'low' and has_gpus and who_waits_for(job, after_ms)
  if not id then return false end
  redis.call('HSET', record_key(id), 'way_made', job.id)
  write(job, {makes_way = id})
  return true
end

