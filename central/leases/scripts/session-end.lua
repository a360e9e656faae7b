-- A session ends: by bye (left), or by silence (dead; only where it was silent since `before`). Its leases are ended
-- afterwards, group by group; until that is done it stays listed, so that a sweep goes on with it.
-- keys: KEYS[1] the site's base; session:<id>, sessions
-- args: session, state, before (ms by Redis time, or nil), fields (map), forget (true: its leases are ended)
-- outcomes: 1 ended (groups), 2 it lives or is unknown
-- events: pilot.left, pilot.lost, relay.left, relay.lost
local name = key('session', args.session)
local state = redis.call('HGET', name, 'state')
local groups = redis.call('SMEMBERS', key('groups', args.session))
if args.forget then
  redis.call('SREM', key('sessions'), args.session)
  redis.call('DEL', key('groups', args.session), key('orders', args.session))
  redis.call('EXPIRE', name, 86400)
  return answer({ outcome = 1, groups = {} })
end
if state == 'active' or state == 'draining' then
  if args.before and tonumber(redis.call('HGET', name, 'seenMs')) > args.before then return answer({ outcome = 2 }) end
  redis.call('HSET', name, 'state', args.state)
  if args.fields then
    for field, value in pairs(args.fields) do redis.call('HSET', name, field, value) end
  end
elseif not state then
  redis.call('SREM', key('sessions'), args.session)
  return answer({ outcome = 2 })
end
return answer({ outcome = 1, groups = groups })
