-- A holder says hello. The same incarnation of a live session is given that session again; another incarnation ends
-- the old session at once, because the holder has lost its memory.
-- keys: KEYS[1] the site's base, `indraft:{site:<site>}`; holders, sessions, session:<id>
-- args: session (a new id), holder, role, incarnation, software, nodes (text), lostAfterMs
-- outcomes: 1 new (buried: the old session's id or nil), 2 the same session goes on (session, sequence)
-- events: pilot.greeted, relay.greeted
local now = nowMs()
local old = redis.call('HGET', key('holders'), args.holder)
local live = false
if old then
  local state = redis.call('HGET', key('session', old), 'state')
  live = state == 'active' or state == 'draining'
end
if live and redis.call('HGET', key('session', old), 'incarnation') == args.incarnation then
  redis.call('HSET', key('session', old), 'seenMs', text(now), 'software', args.software, 'nodes', args.nodes,
    'lostAfterMs', text(args.lostAfterMs))
  return answer({ outcome = 2, session = old, sequence = tonumber(redis.call('HGET', key('session', old), 'sequence')) })
end
if live then redis.call('HSET', key('session', old), 'state', 'dead') end
redis.call('HSET', key('session', args.session), 'site', args.site, 'holder', args.holder, 'role', args.role,
  'incarnation', args.incarnation, 'software', args.software, 'nodes', args.nodes, 'state', 'active', 'sequence', '0',
  'processed', '0', 'seenMs', text(now), 'helloMs', text(now), 'lostAfterMs', text(args.lostAfterMs))
redis.call('HSET', key('holders'), args.holder, args.session)
redis.call('SADD', key('sessions'), args.session)
return answer({ outcome = 1, session = args.session, sequence = 0, buried = live and old or nil })
