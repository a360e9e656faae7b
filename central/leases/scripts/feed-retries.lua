-- Bundles the retries that are due, those that avoid the same site together, until the queue of those that do holds
-- `window` bundles; the others wait where they are. Looks at a part of them only, from the `from`th on: else those whose
-- queue is full would stand before all others.
-- args: campaign, step, class, size (tasks a bundle), window, from
-- outcomes: 1 fed (bundles, from: where to look next), 2 the campaign does not run
-- events: none; the tasks stay queued
local c, s = args.campaign, args.step
if redis.call('HGET', key('campaign', c), 'desired') == 'cancelled' then return answer({ outcome = 2 }) end
local retry = key('retry', c, s)
local now = nowMs()
local MOST = 1000
local bySite, records, due = {}, {}, 0
local members = redis.call('ZRANGE', retry, args.from, args.from + MOST - 1, 'WITHSCORES')
for i = 1, #members, 2 do
  if tonumber(members[i + 1]) > now then break end
  due = due + 1
  local index = tonumber(members[i])
  local record = readTask(c, s, index) or { attempts = 0, payload = 0, infrastructure = 0, fences = '' }
  local avoid = (record.avoid and (record['until'] or 0) > now) and record.avoid or ''
  records[index] = record
  bySite[avoid] = bySite[avoid] or {}
  table.insert(bySite[avoid], index)
end
local bundles, taken = 0, 0
for avoid, list in pairs(bySite) do
  local room = args.window - redis.call('ZCARD', key('queue', c .. '|' .. s .. '|' .. args.class .. '|' .. avoid))
  table.sort(list)
  for first = 1, math.min(#list, math.max(0, room) * args.size), args.size do
    local part, ending, nodes = {}, 0, {}
    for i = first, math.min(first + args.size - 1, #list) do
      local record = records[list[i]]
      part[#part + 1] = list[i]
      redis.call('ZREM', retry, text(list[i]))
      ending = math.max(ending, record['until'] or 0)
      for node in string.gmatch(record.nodes or '', '[^,]+') do
        if not nodes[node] and #nodes < 64 then
          nodes[node] = true
          nodes[#nodes + 1] = node
        end
      end
    end
    local bundle = newBundle({
      campaign = c, step = s, class = args.class, avoid = avoid, state = 'queued', spans = spansOf(part),
      nodes = table.concat(nodes, ','), ['until'] = ending,
    })
    enqueue(bundle, avoid == '' and now or ending)
    for _, index in ipairs(part) do
      records[index].bundle = bundle.id
      writeTask(c, s, index, records[index])
    end
    bundles = bundles + 1
    taken = taken + #part
  end
end
return answer({ outcome = 1, bundles = bundles, from = due < MOST and 0 or args.from + due - taken })
