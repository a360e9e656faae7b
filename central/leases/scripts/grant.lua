-- Leases bundles to a session, and keeps the answer under (session, sequence): a repeat is given the same again.
-- A bundle larger than what is wanted, or than what one reply can carry, is split; the rest stays queued under its own id.
-- args: session, site, holder, sequence, confirmMs, bytes and bundles (what the reply may still grow by), picks (list of
--   {campaign, step, class, avoid, tasks, node, others, template, templateBytes (0 where the holder has it), grantBytes,
--   rowBytes})
-- outcomes: 1 granted (leases, bytes: what is left of them), 2 repeated (leases), 3 the session is dead here, 4 nothing left of what was picked, or
--   the holder has left this pull behind (who asks stood still meanwhile)
-- events: bundle.granted, task.granted
local replyKey = key('reply', args.session)

local function avoids(record, node)
  return string.find(',' .. record.nodes .. ',', ',' .. node .. ',', 1, true) ~= nil
end

local function triesOf(c, s, list)
  local tries = {}
  if redis.call('EXISTS', key('tasks', c, s)) == 0 then return tries end
  for first = 1, #list, 500 do
    local names = {}
    for i = first, math.min(first + 499, #list) do names[#names + 1] = text(list[i]) end
    for i, packed in ipairs(redis.call('HMGET', key('tasks', c, s), unpack(names))) do
      if packed then
        local attempts = cmsgpack.unpack(packed).attempts
        if attempts > 0 then tries[names[i]] = attempts end
      end
    end
  end
  return tries
end

local function describe(record, tries)
  return {
    bundle = record.id, fence = record.fence, campaign = record.campaign, step = record.step, class = record.class,
    tasks = record.remaining, nodes = record.nodes or '',
    tries = tries or triesOf(record.campaign, record.step, indices(record.spans)),
  }
end

if redis.call('HEXISTS', key('dead'), args.session) == 1 then return answer({ outcome = 3 }) end
local stored = redis.call('GET', replyKey)
if stored then
  local reply = cmsgpack.unpack(stored)
  if reply.sequence == args.sequence then
    local leases = {}
    for _, lease in ipairs(reply.leases) do
      local record = readBundle(lease.bundle)
      if record and record.state == 'leased' and record.fence == lease.fence then leases[#leases + 1] = describe(record) end
    end
    return answer({ outcome = 2, leases = leases })
  end
  if reply.sequence > args.sequence then return answer({ outcome = 4 }) end
end

local now = nowMs()
local function nextFence()
  local t = redis.call('TIME')
  local fence = math.max((tonumber(redis.call('HGET', key('counters'), 'fence') or 0)) + 1, t[1] * 1000000 + t[2])
  redis.call('HSET', key('counters'), 'fence', text(fence))
  return text(fence)
end

local function room(c)
  local use = redis.call('HMGET', key('use'), 'leased', 'leased:' .. c)
  local ofGroup = tonumber(redis.call('HGET', key('limits'), 'maxRunning') or '') or math.huge
  local ofCampaign = tonumber(redis.call('HGET', key('campaign', c), 'maxRunning') or '') or math.huge
  return math.min(ofGroup - tonumber(use[1] or 0), ofCampaign - tonumber(use[2] or 0))
end

local bytes, left = args.bytes, args.bundles
local templates = {}

-- What a lease adds to the reply at most, before it is compressed: its ranges stand in the signed bundle, in the lease
-- and, while they are short, in the capability.
local function weigh(pick, spans, nodes, tries)
  local ranges = #format(spans)
  local sum = pick.grantBytes + 2 * ranges + math.min(400, 2 * ranges) + pick.rowBytes * count(spans)
  if not templates[pick.template] then sum = sum + pick.templateBytes end
  for _ in string.gmatch(nodes, '[^,]+') do sum = sum + 3 end
  for index in pairs(tries) do sum = sum + #index + 6 end
  return sum + #nodes
end

-- The first tasks of a bundle that are wanted and that the reply can carry; nil where it has no room for them. Halved
-- only while the reply is empty: then there is a part of any bundle that can be granted.
local function fitting(pick, record, wanted)
  local size = math.min(count(record.spans), wanted)
  while true do
    local taken, rest = takeFirst(record.spans, size)
    local tries = triesOf(pick.campaign, pick.step, indices(taken))
    local weight = weigh(pick, taken, record.nodes or '', tries)
    if weight <= bytes then return { size = size, taken = taken, rest = rest, tries = tries, weight = weight } end
    if size == 1 or bytes < args.bytes then return nil end
    size = math.floor(size / 2)
  end
end

local leases, reply = {}, {}
for _, pick in ipairs(args.picks) do
  local c, s = pick.campaign, pick.step
  local wanted = math.min(pick.tasks, room(c))
  if redis.call('HGET', key('campaign', c), 'desired') ~= 'run' then wanted = 0 end
  local queue = key('queue', c .. '|' .. s .. '|' .. pick.class .. '|' .. pick.avoid)
  local candidates = wanted > 0 and redis.call('ZRANGE', queue, 0, left + 20) or {}
  for _, b in ipairs(candidates) do
    if wanted <= 0 or left <= 0 then break end
    local record = readBundle(b)
    local avoided = record and pick.node ~= '' and avoids(record, pick.node)
    if avoided then
      -- Only while somebody else could take it: where it avoids all of them, any will do.
      local alternative = false
      for _, other in ipairs(pick.others) do
        if not avoids(record, other) then
          alternative = true
          break
        end
      end
      avoided = alternative
    end
    if record and record.state == 'queued' and not avoided then
      local part = fitting(pick, record, wanted)
      if not part then break end
      if #part.rest > 0 then
        keepRest(record, part.rest)
        record = newBundle({
          campaign = c, step = s, class = record.class, avoid = record.avoid, state = 'leased', spans = part.taken,
          nodes = record.nodes, ['until'] = tonumber(record['until']),
        })
        for _, index in ipairs(indices(part.taken)) do
          local task = readTask(c, s, index)
          if task then
            task.bundle = record.id
            writeTask(c, s, index, task)
          end
        end
      else
        dequeue(record)
      end
      record.state = 'leased'
      record.fence = nextFence()
      redis.call('HSET', key('bundle', record.id), 'state', 'leased', 'fence', record.fence, 'session', args.session,
        'site', args.site, 'holder', args.holder, 'sequence', text(args.sequence), 'grantedMs', text(now))
      redis.call('HSET', key('leases', args.session), record.id, record.fence)
      redis.call('ZADD', key('provisional'), now + args.confirmMs, record.id)
      redis.call('ZADD', key('unconfirmed', args.session), args.sequence, record.id)
      move(c, s, indices(record.spans), { queued = true }, 'assigned')
      leases[#leases + 1] = describe(record, part.tries)
      reply[#reply + 1] = { bundle = record.id, fence = record.fence }
      wanted = wanted - part.size
      left = left - 1
      bytes = bytes - part.weight
      templates[pick.template] = true
    end
  end
end
if #leases == 0 then return answer({ outcome = 4 }) end
redis.call('SET', replyKey, cmsgpack.pack({ sequence = args.sequence, leases = reply }))
return answer({ outcome = 1, leases = leases, bytes = bytes })
