-- What a user wants of a campaign, under a version that only rises.
-- args: campaign, from (list of states the change is legal in), to
-- outcomes: 1 set (version), 2 already so (version), 3 illegal (desired: what it is), 4 no such campaign
-- events: campaign.paused, campaign.resumed, campaign.cancelled
local name = key('campaign', args.campaign)
local desired = redis.call('HGET', name, 'desired')
if not desired then return answer({ outcome = 4 }) end
if desired == args.to then
  return answer({ outcome = 2, version = tonumber(redis.call('HGET', name, 'version')) })
end
local legal = false
for _, from in ipairs(args.from) do legal = legal or from == desired end
if not legal then return answer({ outcome = 3, desired = desired }) end
redis.call('HSET', name, 'desired', args.to)
if args.to == 'cancelled' then redis.call('SADD', key('cancelling'), args.campaign) end
woken = true
return answer({ outcome = 1, version = redis.call('HINCRBY', name, 'version', 1) })
