-- Leases bundles to a session, and keeps the answer under (session, sequence): a repeat is given the same again.
-- A bundle larger than what is wanted is split; the rest stays queued under its own id.
-- args: session, site, holder, sequence, confirmMs, picks (list of {campaign, step, class, avoid, tasks, bundles, node,
--   others})
-- outcomes: 1 granted (leases), 2 repeated (leases), 3 the session is dead here, 4 nothing left of what was picked, or
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

local function describe(record)
  return {
    bundle = record.id, fence = record.fence, campaign = record.campaign, step = record.step, class = record.class,
    tasks = record.remaining, nodes = record.nodes or '',
    tries = triesOf(record.campaign, record.step, indices(record.spans)),
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

local leases, reply = {}, {}
for _, pick in ipairs(args.picks) do
  local c, s = pick.campaign, pick.step
  local wanted = math.min(pick.tasks, room(c))
  local left = pick.bundles
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
      local size = count(record.spans)
      if size > wanted then
        local taken, rest = takeFirst(record.spans, wanted)
        keepRest(record, rest)
        record = newBundle({
          campaign = c, step = s, class = record.class, avoid = record.avoid, state = 'leased', spans = taken,
          nodes = record.nodes, ['until'] = tonumber(record['until']),
        })
        for _, index in ipairs(indices(taken)) do
          local task = readTask(c, s, index)
          if task then
            task.bundle = record.id
            writeTask(c, s, index, task)
          end
        end
        size = wanted
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
      leases[#leases + 1] = describe(record)
      reply[#reply + 1] = { bundle = record.id, fence = record.fence }
      wanted = wanted - size
      left = left - 1
    end
  end
end
if #leases == 0 then return answer({ outcome = 4 }) end
redis.call('SET', replyKey, cmsgpack.pack({ sequence = args.sequence, leases = reply }))
return answer({ outcome = 1, leases = leases })
