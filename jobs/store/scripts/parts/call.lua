-- A script receives one argument, a JSON object. It refuses with one of these codes, which `jobs.store.scripts` turns
-- into an error of `jobs.errors`.

local given = cjson.decode(ARGV[1])

local JOB_NOT_FOUND = redis.error_reply('JOB_NOT_FOUND')
local JOB_ENDED = redis.error_reply('JOB_ENDED')
local LEASE_LOST = redis.error_reply('LEASE_LOST')
local KEY_REUSED = redis.error_reply('KEY_REUSED')
