-- Notes that a campaign is over, where all its tasks are; and takes it from the list of those that are looked at.
-- args: campaign, steps (names), retire (true: nothing is left to be done for it either)
-- outcomes: 1 over now, 2 over before, 3 it is not over
-- events: campaign.ended
local c = args.campaign
for _, s in ipairs(args.steps) do
  if openTasks(c, s) > 0 then return answer({ outcome = 3 }) end
end
local isNew = redis.call('HSETNX', key('campaign', c), 'endedMs', text(nowMs())) == 1
redis.call('SREM', key('cancelling'), c)
if args.retire then redis.call('SREM', key('active'), c) end
woken = isNew
return answer({ outcome = isNew and 1 or 2 })
