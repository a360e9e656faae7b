-- A message of a session: it lives. Answers what the dispatcher needs to go on.
-- keys: KEYS[1] the site's base; session:<id>, groups:<id>, orders:<id>
-- args: session, sequence (of a pull, or nil), fields (map, of a beat), groups (list to be noted
--   before leases are granted there), orders (true: hand out and count)
-- outcomes: 1 well (sequence: the last before this, processed, role, holder, groups, orders), 2 unknown or dead,
--   3 the pull is older than one answered
-- events: pilot.draining, relay.draining
local name = key('session', args.session)
local state = redis.call('HGET', name, 'state')
if state ~= 'active' and state ~= 'draining' then return answer({ outcome = 2 }) end
local sequence = tonumber(redis.call('HGET', name, 'sequence'))
if args.sequence and args.sequence < sequence then return answer({ outcome = 3, sequence = sequence }) end
redis.call('HSET', name, 'seenMs', text(nowMs()))
if args.sequence then redis.call('HSET', name, 'sequence', text(args.sequence)) end
local processed = tonumber(redis.call('HGET', name, 'processed'))
if args.fields then
  for field, value in pairs(args.fields) do redis.call('HSET', name, field, value) end
end
if args.groups then
  for _, group in ipairs(args.groups) do redis.call('SADD', key('groups', args.session), group) end
end
local orders = {}
if args.orders then
  for _, order in ipairs(redis.call('ZRANGE', key('orders', args.session), 0, 63)) do
    orders[#orders + 1] = order
    if tonumber(redis.call('ZINCRBY', key('orders', args.session), 1, order)) >= 3 then
      redis.call('ZREM', key('orders', args.session), order)
    end
  end
end
local about = redis.call('HMGET', name, 'role', 'holder', 'state')
return answer({
  outcome = 1, sequence = sequence, processed = processed, role = about[1], holder = about[2], state = about[3],
  groups = redis.call('SMEMBERS', key('groups', args.session)), orders = orders,
})
