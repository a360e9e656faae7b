-- Makes blocked tasks of a step queued, from first to last; `first` is even, `last` odd or the step's last task.
-- Any order and any repetition of ranges is allowed. The call with `complete` marks the step released.
-- args: campaign, step, first, last, complete, manifests (text or nil)
-- outcomes: 1 released, 2 the campaign is cancelled or the step was skipped
-- events: task.released
local c, s = args.campaign, args.step
if redis.call('HGET', key('campaign', c), 'desired') == 'cancelled' or
    string.find('skipped reopening', redis.call('HGET', key('step', c, s), 'released'), 1, true) then
  return answer({ outcome = 2 })
end
if args.manifests then redis.call('HSET', key('step', c, s), 'manifests', args.manifests) end
local from, to = args.first / 2, math.floor(args.last / 2)
local bytes = redis.call('GETRANGE', key('state', c, s), from, to)
if bytes == string.rep('\0', to - from + 1) then
  local fill = string.rep('\17', to - from)
  redis.call('SETRANGE', key('state', c, s), from, fill .. (args.last % 2 == 1 and '\17' or '\16'))
  recount(c, s, { blocked = args.last - args.first + 1 }, 'queued')
  addReady(c, s, args.first, args.last)
else
  local moved = move(c, s, indices({ { args.first, args.last } }), { blocked = true }, 'queued')
  for _, span in ipairs(spansOf(moved)) do addReady(c, s, span[1], span[2]) end
end
if args.complete then redis.call('HSET', key('step', c, s), 'released', '1') end
woken = true
return answer({ outcome = 1 })
