-- Bundles the retries that are due, those that avoid the same site together.
-- args: campaign, step, class, size (tasks a bundle)
-- outcomes: 1 fed (bundles, next: when the next one is due, ms, or nil), 2 the campaign does not run
-- events: none; the tasks stay queued
local c, s = args.campaign, args.step
if redis.call('HGET', key('campaign', c), 'desired') == 'cancelled' then return answer({ outcome = 2 }) end
local retry = key('retry', c, s)
local now = nowMs()
local bySite, records = {}, {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', retry, '-inf', now, 'LIMIT', 0, 1000)) do
  local index = tonumber(member)
  local record = readTask(c, s, index) or { attempts = 0, payload = 0, infrastructure = 0, fences = '' }
  local avoid = (record.avoid and (record['until'] or 0) > now) and record.avoid or ''
  redis.call('ZREM', retry, member)
  records[index] = record
  bySite[avoid] = bySite[avoid] or {}
  table.insert(bySite[avoid], index)
end
local bundles = 0
for avoid, list in pairs(bySite) do
  table.sort(list)
  for first = 1, #list, args.size do
    local part, ending, nodes = {}, 0, {}
    for i = first, math.min(first + args.size - 1, #list) do
      local record = records[list[i]]
      part[#part + 1] = list[i]
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
  end
end
local next = redis.call('ZRANGE', retry, 0, 0, 'WITHSCORES')[2]
return answer({ outcome = 1, bundles = bundles, next = next and tonumber(next) or nil })
