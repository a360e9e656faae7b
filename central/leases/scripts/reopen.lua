-- Skipped tasks of a step become blocked again, because a step before it goes on: a part per call, until `more` is false.
-- Meanwhile the step is `reopening`, so that nobody skips what this has passed.
-- args: campaign, step, size, cursor (task to go on from)
-- outcomes: 1 done so far (more, cursor), 2 the step is not skipped, or the campaign is cancelled
-- events: task.reopened
local c, s = args.campaign, args.step
local name = key('step', c, s)
local released = redis.call('HGET', name, 'released')
if (released ~= 'skipped' and released ~= 'reopening') or
    redis.call('HGET', key('campaign', c), 'desired') == 'cancelled' then
  return answer({ outcome = 2 })
end
redis.call('HSET', name, 'released', 'reopening')
local list = {}
local last = math.min(args.size, args.cursor + 5000)
for index = args.cursor, last - 1 do list[#list + 1] = index end
move(c, s, list, { skipped = true }, 'blocked')
if tonumber(redis.call('HGET', key('counts', c, s), 'skipped') or 0) == 0 then
  redis.call('HSET', name, 'released', '0')
  last = args.size
end
return answer({ outcome = 1, more = last < args.size, cursor = last })
