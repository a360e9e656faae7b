-- Creates a campaign with all tasks blocked. Idempotent.
-- args: id, name, digest, fields (map for the campaign's hash), steps (list of {name, size, fields})
-- outcomes: 1 created, 2 the same campaign was there, 3 a campaign of this name has other content
-- events: campaign.created
local id = redis.call('HGET', key('names'), args.name)
local digest = redis.call('HGET', key('campaign', id or args.id), 'digest')
if digest then return answer({ outcome = digest == args.digest and 2 or 3 }) end
local now = nowMs()
for field, value in pairs(args.fields) do redis.call('HSET', key('campaign', args.id), field, value) end
redis.call('HSET', key('campaign', args.id), 'digest', args.digest, 'desired', 'run', 'version', 1, 'createdMs', text(now))
for _, step in ipairs(args.steps) do
  redis.call('SETRANGE', key('state', args.id, step.name), math.floor((step.size - 1) / 2), '\0')
  redis.call('HSET', key('counts', args.id, step.name), 'blocked', text(step.size))
  redis.call('HSET', key('step', args.id, step.name), 'released', '0', 'size', text(step.size))
  for field, value in pairs(step.fields) do redis.call('HSET', key('step', args.id, step.name), field, value) end
end
redis.call('HSET', key('names'), args.name, args.id)
redis.call('ZADD', key('campaigns'), now, args.id)
redis.call('SADD', key('active'), args.id)
return answer({ outcome = 1 })
