-- Cuts ready ranges into queued bundles until the queue holds `window` bundles. Repeating adds nothing too much.
-- args: campaign, step, class, size (tasks a bundle), window
-- outcomes: 1 fed (bundles, left: whether ready tasks are left), 2 the campaign does not run
-- events: none; the tasks stay queued
local c, s = args.campaign, args.step
if redis.call('HGET', key('campaign', c), 'desired') == 'cancelled' then return answer({ outcome = 2 }) end
local ready = key('ready', c, s)
local queue = key('queue', c .. '|' .. s .. '|' .. args.class .. '|')
local room = args.window - redis.call('ZCARD', queue)
local bundles = 0
local now = nowMs()
-- Fractions of the score keep the order of tasks among bundles of one call: ids would sort as text.
while bundles < room do
  local spans, wanted = {}, args.size
  while wanted > 0 and #spans < 50 do
    local member = redis.call('ZRANGE', ready, 0, 0)[1]
    if not member then break end
    local a, b = string.match(member, '(%d+)%-(%d+)')
    a, b = tonumber(a), tonumber(b)
    redis.call('ZREM', ready, member)
    local last = math.min(b, a + wanted - 1)
    if last < b then redis.call('ZADD', ready, last + 1, text(last + 1) .. '-' .. text(b)) end
    spans[#spans + 1] = { a, last }
    wanted = wanted - (last - a + 1)
  end
  if #spans == 0 then break end
  enqueue(newBundle({ campaign = c, step = s, class = args.class, avoid = '', state = 'queued', spans = spans }), now + bundles / 1000)
  bundles = bundles + 1
end
return answer({ outcome = 1, bundles = bundles, left = redis.call('EXISTS', ready) == 1 })
