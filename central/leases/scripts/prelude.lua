-- Put before every script of a group. KEYS[1] is the group's base, `indraft:{<group>}`; all keys a script touches
-- begin with it, so a group is one hash slot. ARGV[1] is msgpack of the arguments; raw bytes follow as ARGV[2..].
-- Every script answers msgpack of a map with a numbered `outcome`.
--
-- Keys of a group:
--   names                hash   campaign name -> id
--   campaigns            zset   id by time of creation, ms
--   active               set    ids of campaigns with open tasks, or with results to be compacted
--   cancelling           set    ids of cancelled campaigns that may still have leased tasks
--   campaign:<c>         hash   the campaign: plan digest, desired state, version
--   failures:<c>         hash   step|reason|detail -> how often an attempt ended so
--   past:<c>             hash   fence -> site|tasks: tasks that left a lease in another way than by its own success
--   step:<c>:<s>         hash   released (0, 1, skipped, reopening), template, manifests, wallMs and wallCount of done tasks
--   state:<c>:<s>        string four bits a task, see TASK_STATE_CODE in shared/lifecycle.ts
--   counts:<c>:<s>       hash   state -> number of tasks; moved with the state, here only
--   ready:<c>:<s>        zset   `first-last` by first: queued, in no bundle yet
--   retry:<c>:<s>        zset   index by due time, ms: queued, to be bundled again
--   refused:<c>:<s>      hash   site -> until|times: its policy refused tasks of the step, so it gets none before then;
--                               `*` while no site is left that has not, and it matters no more
--   tasks:<c>:<s>        hash   index -> small record, only of tasks that had an error or moved
--   results:<c>:<s>      hash   index -> winning result, msgpack
--   history:<c>:<s>      hash   index:fence -> R or E, then msgpack: a reported, or an expired, earlier attempt
--   blocks:<c>:<s>       hash   number of a block of 256 tasks -> digest of its results in the blob store
--   bundles:<c>:<s>      set    ids of bundles that are not closed
--   bundle:<b>           hash   the bundle record; of a leased one, at:<node> -> tasks that started there
--   queues               set    c|s|class|avoid of every queue that is not empty
--   queue:<c>|<s>|<class>|<avoid>  zset  queued bundles, by age or by the end of the avoidance
--   provisional          zset   bundles granted but not confirmed, by deadline
--   leases:<session>     hash   bundle -> fence of all the session holds
--   unconfirmed:<session> zset  bundle by the sequence of its grant
--   reply:<session>      string the last grants, msgpack of {sequence, bundles}
--   dead                 hash   session -> when it was declared dead, ms
--   publish              set    c|s|index of done tasks with outputs to be published
--   named:<site>         zset   c|s|index|fences of done tasks whose outputs a relay names, by time, ms
--   limits               hash   maxRunning
--   use                  hash   leased, and leased:<c>: tasks assigned or running
--   counters             hash   bundle, fence: last numbers given
local base = KEYS[1]
local args = cmsgpack.unpack(ARGV[1])
local CODE = { blocked = 0, queued = 1, assigned = 2, running = 3, done = 4, failed = 5, held = 6, skipped = 7, cancelled = 8 }
local NAME = { [0] = 'blocked', 'queued', 'assigned', 'running', 'done', 'failed', 'held', 'skipped', 'cancelled' }
local woken = false

local function key(kind, a, b)
  local name = base .. ':' .. kind
  if a then name = name .. ':' .. a end
  if b then name = name .. ':' .. b end
  return name
end

local function text(number) return string.format('%.0f', number) end

local function nowMs()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function answer(reply)
  if woken then redis.call('PUBLISH', 'indraft:wake', base) end
  return cmsgpack.pack(reply)
end

local function hash(name)
  local flat = redis.call('HGETALL', name)
  local map = {}
  for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
  return map
end

-- Ranges: lists of {first, last}, written `0-9,12`.
local function parse(ranges)
  local spans = {}
  for a, b in string.gmatch(ranges, '(%d+)%-?(%d*)') do
    a = tonumber(a)
    spans[#spans + 1] = { a, tonumber(b) or a }
  end
  return spans
end

local function format(spans)
  local parts = {}
  for i, span in ipairs(spans) do
    parts[i] = span[1] == span[2] and text(span[1]) or (text(span[1]) .. '-' .. text(span[2]))
  end
  return table.concat(parts, ',')
end

local function count(spans)
  local sum = 0
  for _, span in ipairs(spans) do sum = sum + span[2] - span[1] + 1 end
  return sum
end

local function indices(spans)
  local list = {}
  for _, span in ipairs(spans) do
    for i = span[1], span[2] do list[#list + 1] = i end
  end
  return list
end

-- Of any list of indices.
local function spansOf(list)
  table.sort(list)
  local spans = {}
  for _, i in ipairs(list) do
    local last = spans[#spans]
    if last and i <= last[2] + 1 then last[2] = math.max(last[2], i) else spans[#spans + 1] = { i, i } end
  end
  return spans
end

local function contains(spans, index)
  for _, span in ipairs(spans) do
    if index >= span[1] and index <= span[2] then return true end
  end
  return false
end

-- Splits a set by another: what is in both, and what is only in the first.
local function split(spans, other)
  local both, only = {}, {}
  for _, i in ipairs(indices(spans)) do
    local into = contains(other, i) and both or only
    into[#into + 1] = i
  end
  return both, spansOf(only)
end

local function takeFirst(spans, wanted)
  local taken, rest = {}, {}
  for _, span in ipairs(spans) do
    local size = span[2] - span[1] + 1
    if wanted >= size then
      taken[#taken + 1] = span
    elseif wanted > 0 then
      taken[#taken + 1] = { span[1], span[1] + wanted - 1 }
      rest[#rest + 1] = { span[1] + wanted, span[2] }
    else
      rest[#rest + 1] = span
    end
    wanted = math.max(0, wanted - size)
  end
  return taken, rest
end

-- Counts move with states, here and nowhere else. `moves` is name of the old state -> number of tasks.
local function recount(c, s, moves, to)
  local leasedBefore, total = 0, 0
  for from, n in pairs(moves) do
    if n > 0 then
      redis.call('HINCRBY', key('counts', c, s), from, -n)
      total = total + n
      if from == 'assigned' or from == 'running' then leasedBefore = leasedBefore + n end
    end
  end
  if total == 0 then return end
  redis.call('HINCRBY', key('counts', c, s), to, total)
  local leasedAfter = (to == 'assigned' or to == 'running') and total or 0
  if leasedAfter ~= leasedBefore then
    redis.call('HINCRBY', key('use'), 'leased', leasedAfter - leasedBefore)
    redis.call('HINCRBY', key('use'), 'leased:' .. c, leasedAfter - leasedBefore)
  end
end

local function stateOf(c, s, index)
  return NAME[redis.call('BITFIELD', key('state', c, s), 'GET', 'u4', '#' .. text(index))[1]]
end

-- Moves those of the listed tasks that are in one of the states `from` (a map name -> true) and returns their indices
-- with the state each had.
local function move(c, s, list, from, to)
  local moved, before, moves = {}, {}, {}
  for first = 1, #list, 500 do
    local last = math.min(first + 499, #list)
    local get, set = {}, {}
    for i = first, last do
      get[#get + 1] = 'GET'
      get[#get + 1] = 'u4'
      get[#get + 1] = '#' .. text(list[i])
    end
    local codes = redis.call('BITFIELD', key('state', c, s), unpack(get))
    for i = first, last do
      local name = NAME[codes[i - first + 1]]
      if from[name] then
        set[#set + 1] = 'SET'
        set[#set + 1] = 'u4'
        set[#set + 1] = '#' .. text(list[i])
        set[#set + 1] = CODE[to]
        moved[#moved + 1] = list[i]
        before[#before + 1] = name
        moves[name] = (moves[name] or 0) + 1
      end
    end
    if #set > 0 then redis.call('BITFIELD', key('state', c, s), unpack(set)) end
  end
  recount(c, s, moves, to)
  return moved, before
end

-- Tasks that are not over; held ones wait for a person and count.
local function openTasks(c, s)
  local sum = 0
  for _, n in ipairs(redis.call('HMGET', key('counts', c, s), 'blocked', 'queued', 'assigned', 'running', 'held')) do
    sum = sum + (tonumber(n or 0) or 0)
  end
  return sum
end

local function readTask(c, s, index)
  local packed = redis.call('HGET', key('tasks', c, s), text(index))
  return packed and cmsgpack.unpack(packed) or nil
end

local function writeTask(c, s, index, record)
  redis.call('HSET', key('tasks', c, s), text(index), cmsgpack.pack(record))
end

-- The ready ranges: spans join with their neighbours.
local function addReady(c, s, first, last)
  local name = key('ready', c, s)
  local before = redis.call('ZREVRANGEBYSCORE', name, first, '-inf', 'LIMIT', 0, 1)[1]
  if before then
    local a, b = string.match(before, '(%d+)%-(%d+)')
    if tonumber(b) == first - 1 then
      redis.call('ZREM', name, before)
      first = tonumber(a)
    end
  end
  local after = redis.call('ZRANGEBYSCORE', name, last + 1, last + 1, 'LIMIT', 0, 1)[1]
  if after then
    redis.call('ZREM', name, after)
    last = tonumber(string.match(after, '%-(%d+)'))
  end
  redis.call('ZADD', name, first, text(first) .. '-' .. text(last))
end

-- Takes one index out of the ready ranges; false where it is not there.
local function dropReady(c, s, index)
  local name = key('ready', c, s)
  local member = redis.call('ZREVRANGEBYSCORE', name, index, '-inf', 'LIMIT', 0, 1)[1]
  if not member then return false end
  local a, b = string.match(member, '(%d+)%-(%d+)')
  a, b = tonumber(a), tonumber(b)
  if index > b then return false end
  redis.call('ZREM', name, member)
  if a < index then redis.call('ZADD', name, a, text(a) .. '-' .. text(index - 1)) end
  if index < b then redis.call('ZADD', name, index + 1, text(index + 1) .. '-' .. text(b)) end
  return true
end

-- Bundles.
local function readBundle(b)
  local record = hash(key('bundle', b))
  if not record.state then return nil end
  record.id = b
  record.spans = parse(record.remaining)
  return record
end

local function queueId(record) return record.campaign .. '|' .. record.step .. '|' .. record.class .. '|' .. record.avoid end

local function enqueue(record, score)
  local id = queueId(record)
  redis.call('ZADD', key('queue', id), score, record.id)
  redis.call('SADD', key('queues'), id)
  woken = true
end

local function dequeue(record)
  local id = queueId(record)
  redis.call('ZREM', key('queue', id), record.id)
  if redis.call('EXISTS', key('queue', id)) == 0 then redis.call('SREM', key('queues'), id) end
end

-- A holder may hold bundles of several groups, so their ids say which.
local function newBundle(record)
  local number = text(redis.call('HINCRBY', key('counters'), 'bundle', 1))
  record.id = 'b' .. number .. '.' .. string.sub(redis.sha1hex(base), 1, 8)
  record.remaining = format(record.spans)
  redis.call('HSET', key('bundle', record.id), 'campaign', record.campaign, 'step', record.step, 'class', record.class,
    'avoid', record.avoid, 'until', text(record['until'] or 0), 'nodes', record.nodes or '', 'state', record.state,
    'remaining', record.remaining)
  redis.call('SADD', key('bundles', record.campaign, record.step), record.id)
  return record
end

local function closeBundle(record)
  if record.state == 'queued' then dequeue(record) end
  if record.state == 'leased' then
    redis.call('HDEL', key('leases', record.session), record.id)
    redis.call('ZREM', key('unconfirmed', record.session), record.id)
    redis.call('ZREM', key('provisional'), record.id)
  end
  redis.call('SREM', key('bundles', record.campaign, record.step), record.id)
  redis.call('DEL', key('bundle', record.id))
  record.state = 'closed'
end

-- Writes what is left of a bundle, or closes it.
local function keepRest(record, rest)
  record.spans = rest
  if #rest == 0 then return closeBundle(record) end
  record.remaining = format(rest)
  redis.call('HSET', key('bundle', record.id), 'remaining', record.remaining)
end

local function without(spans, index)
  local rest = {}
  for _, span in ipairs(spans) do
    if index < span[1] or index > span[2] then
      rest[#rest + 1] = span
    else
      if span[1] < index then rest[#rest + 1] = { span[1], index - 1 } end
      if index < span[2] then rest[#rest + 1] = { index + 1, span[2] } end
    end
  end
  return rest
end

-- Tasks that left a lease in another way than by its own success: their results may still come.
local function remember(c, fence, site, list)
  if #list == 0 then return end
  local old = redis.call('HGET', key('past', c), fence)
  local all = old and indices(parse(string.match(old, '|(.*)'))) or {}
  for _, index in ipairs(list) do all[#all + 1] = index end
  redis.call('HSET', key('past', c), fence, site .. '|' .. format(spansOf(all)))
end

-- Which bundle of a step each task is in, by first index: read once a call, for it is as long as there are bundles.
-- Meanwhile bundles may lose tasks and close; a script that makes new ones must not look for tasks.
local bundled = {}
local function bundledSpans(c, s)
  local step = c .. '|' .. s
  if not bundled[step] then
    local list = {}
    for _, b in ipairs(redis.call('SMEMBERS', key('bundles', c, s))) do
      for _, span in ipairs(parse(redis.call('HGET', key('bundle', b), 'remaining') or '')) do
        list[#list + 1] = { span[1], span[2], b }
      end
    end
    table.sort(list, function(one, other) return one[1] < other[1] end)
    bundled[step] = list
  end
  return bundled[step]
end

-- The live bundle that has a task: by the hint in its record, else by looking through the step's bundles.
local function locateBundle(c, s, index, record)
  local function holding(b)
    local bundle = readBundle(b)
    if bundle and bundle.campaign == c and bundle.step == s and contains(bundle.spans, index) then return bundle end
    return nil
  end
  local hinted = record and record.bundle and holding(record.bundle)
  if hinted then return hinted end
  local list = bundledSpans(c, s)
  local low, high = 1, #list
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if list[middle][1] <= index then low = middle else high = middle - 1 end
  end
  return list[low] and contains({ list[low] }, index) and holding(list[low][3]) or nil
end

-- Queued tasks that no attempt was charged for go back to where they are bundled from, by no other way than this.
local function backToQueue(c, s, list)
  local plain = {}
  for _, index in ipairs(list) do
    local record = readTask(c, s, index)
    if record then
      record.bundle = nil
      writeTask(c, s, index, record)
      redis.call('ZADD', key('retry', c, s), nowMs(), text(index))
    else
      plain[#plain + 1] = index
    end
  end
  for _, span in ipairs(spansOf(plain)) do addReady(c, s, span[1], span[2]) end
end

local function listed(list, word) return string.find(',' .. (list or '') .. ',', ',' .. word .. ',', 1, true) ~= nil end

local function withWord(list, word)
  if listed(list, word) then return list end
  return (list or '') == '' and word or (list .. ',' .. word)
end

-- A site's own policy refused a task. The whole step stays away from the site for a while, longer each time; and the task
-- by itself for `refusedMs`. `rules.sites` are those that may run the step for all that is known.
-- Returns whether the site refuses this task for the first time, and whether a site is left that did not.
local function noteRefusal(c, s, record, rules)
  local name, now = key('refused', c, s), nowMs()
  local till, times = string.match(redis.call('HGET', name, rules.site) or '', '^(%d+)|(%d+)$')
  if not till or tonumber(till) <= now then
    local nth = tonumber(times or 0) + 1
    local forMs = math.min(rules.refusedMs, rules.avoidMs * 2 ^ (nth - 1))
    redis.call('HSET', name, rules.site, text(now + forMs) .. '|' .. text(nth))
  end
  local isFirst = not listed(record.refused, rules.site)
  record.refused = withWord(record.refused, rules.site)
  local ofStep, ofTask = false, false
  for _, site in ipairs(rules.sites) do
    ofStep = ofStep or redis.call('HEXISTS', name, site) == 0
    ofTask = ofTask or not listed(record.refused, site)
  end
  if ofStep then redis.call('HDEL', name, '*') else redis.call('HSET', name, '*', '1') end
  return isFirst, ofTask
end

-- A task of the step ended well at this site: it is no more one that refuses them.
local function forgiveSite(c, s, site) redis.call('HDEL', key('refused', c, s), site, '*') end

-- What a task stays away from: sites that refused it, as `!site`, or else the one where it failed last.
local function avoidOf(record, site)
  local list = ''
  for one in string.gmatch(record.refused or '', '[^,]+') do list = withWord(list, '!' .. one) end
  -- A refusal is kept to for a day: too long to stay away from a site for one failure there.
  if list ~= '' then return list end
  return site
end

-- Charges an ended attempt and says what the task becomes. `rules` are the step's retries and this end's facts:
-- charge (payload, infrastructure, none), retry, hold, limit, exhausted, backOffMs, longestMs, site, node, avoidMs; where
-- the site's policy refused it also sites and refusedMs: a site's first refusal of a task costs nothing.
-- Returns the state moved to. The task must be assigned or running and already be out of its bundle.
local LEASED = { assigned = true, running = true }
local function endAttempt(c, s, index, fence, rules)
  local record = readTask(c, s, index) or { attempts = 0, payload = 0, infrastructure = 0, fences = '' }
  record.attempts = record.attempts + 1
  record.fences = record.fences == '' and fence or (record.fences .. ',' .. fence)
  record.reason = rules.reason
  record.site = rules.site
  record.node = rules.node
  record.bundle = nil
  local to, isFree = 'queued', false
  if redis.call('HGET', key('campaign', c), 'desired') == 'cancelled' then
    to = 'cancelled'
  elseif rules.charge ~= 'none' then
    local isLeft = true
    if rules.sites then isFree, isLeft = noteRefusal(c, s, record, rules) end
    if rules.hold then
      to = 'held'
    elseif not isLeft then
      to = rules.exhausted
    elseif not isFree and (not rules.retry or record[rules.charge] >= rules.limit) then
      to = rules.exhausted
    end
    if to == 'queued' and not isFree then record[rules.charge] = record[rules.charge] + 1 end
    local now = nowMs()
    record.avoid = avoidOf(record, rules.site)
    record['until'] = math.max(record.refused and record['until'] or 0, now + (rules.refusedMs or rules.avoidMs))
    if rules.node ~= '' and not rules.sites then record.nodes = withWord(record.nodes, rules.node) end
  end
  move(c, s, { index }, LEASED, to)
  if to == 'queued' then
    local delay = 0
    if rules.charge ~= 'none' and not isFree then
      delay = math.min(rules.longestMs, rules.backOffMs * 2 ^ (record[rules.charge] - 1))
    end
    redis.call('ZADD', key('retry', c, s), nowMs() + delay, text(index))
  end
  writeTask(c, s, index, record)
  return to
end

local function countFailure(c, s, reason, detail)
  local name = key('failures', c)
  if redis.call('HLEN', name) > 500 then detail = '' end
  redis.call('HINCRBY', name, s .. '|' .. reason .. '|' .. detail, 1)
end

