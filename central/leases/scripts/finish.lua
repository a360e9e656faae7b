-- Judges results, each by itself. A result counts where its fence is the lease's and the task is still in it, or
-- where the fence is one that a lease of the same site had before (late). Repeating is harmless.
-- args: site, results (list of {campaign, step, index, bundle, fence, done, wallMs, publish, named, reason, detail,
--   rules}; named: its fences where a relay gives its outputs their names, else ''), namedMs, namedMost; the packed results follow as ARGV[2..], in the same order
-- outcomes: 1 judged (verdicts: list of accepted, duplicate, stale, refused, done; ended: `campaign|step` whose last
--   open task this was; orders: superseded attempts {session, site, bundle, fence, campaign, step, index};
--   retries: `campaign|step`)
--   verdict `done` means: the task is done and its result compacted, so the caller compares the winner's fence
-- events: task.finished, task.failed, task.held, task.requeued, task.cancelled, lease.emptied
local verdicts, ended, orders, retries = {}, {}, {}, {}

-- For a relay that asks because its journal is gone. Nothing has to sweep: the newest entry takes the key with it.
local function noteNamed(r)
  local list, now = key('named', args.site), nowMs()
  redis.call('ZADD', list, now, r.campaign .. '|' .. r.step .. '|' .. text(r.index) .. '|' .. r.named)
  redis.call('ZREMRANGEBYSCORE', list, '-inf', now - args.namedMs)
  redis.call('ZREMRANGEBYRANK', list, 0, -args.namedMost - 1)
  redis.call('PEXPIRE', list, args.namedMs)
end

-- Once a call and step is enough.
local forgiven = {}
local function forgive(c, s)
  if forgiven[c .. '|' .. s] then return end
  forgiven[c .. '|' .. s] = true
  forgiveSite(c, s, args.site)
end

local function win(r, packed)
  local c, s = r.campaign, r.step
  redis.call('HSET', key('results', c, s), text(r.index), packed)
  if r.publish then redis.call('SADD', key('publish'), c .. '|' .. s .. '|' .. text(r.index)) end
  if r.named ~= '' then noteNamed(r) end
  if openTasks(c, s) == 0 then ended[#ended + 1] = c .. '|' .. s end
  -- Last, and no more than a hint: a sum that has run over keeps nothing from being done.
  local sum = redis.pcall('HINCRBY', key('step', c, s), 'wallMs', text(r.wallMs))
  if type(sum) == 'number' then redis.call('HINCRBY', key('step', c, s), 'wallCount', 1) end
end

local function onCurrent(r, record, packed)
  local c, s = r.campaign, r.step
  redis.call('ZREM', key('provisional'), record.id)
  redis.call('ZREM', key('unconfirmed', record.session), record.id)
  keepRest(record, without(record.spans, r.index))
  if r.done then
    move(c, s, { r.index }, LEASED, 'done')
    forgive(c, s)
    win(r, packed)
  else
    redis.call('HSET', key('history', c, s), text(r.index) .. ':' .. r.fence, 'R' .. packed)
    remember(c, r.fence, record.site, { r.index })
    countFailure(c, s, r.reason, r.detail)
    if endAttempt(c, s, r.index, r.fence, r.rules) == 'queued' then
      retries[#retries + 1] = c .. '|' .. s
    elseif openTasks(c, s) == 0 then
      ended[#ended + 1] = c .. '|' .. s
    end
  end
  return 'accepted'
end

-- Takes a queued task out of where it waits, or an attempt's task out of its newer lease.
local function supersede(r, record)
  local c, s = r.campaign, r.step
  if dropReady(c, s, r.index) then return end
  if redis.call('ZREM', key('retry', c, s), text(r.index)) == 1 then return end
  local bundle = locateBundle(c, s, r.index, record)
  if not bundle then return end
  if bundle.state == 'leased' then
    orders[#orders + 1] = {
      session = bundle.session, site = bundle.site, bundle = bundle.id, fence = bundle.fence, campaign = c, step = s,
      index = r.index,
    }
    remember(c, bundle.fence, bundle.site, { r.index })
  end
  keepRest(bundle, without(bundle.spans, r.index))
end

local function onLate(r, packed)
  local c, s = r.campaign, r.step
  local site, tasks = string.match(redis.call('HGET', key('past', c), r.fence) or '', '^(.-)|(.*)$')
  local state = stateOf(c, s, r.index)
  if state == 'done' then
    local winner = redis.call('HGET', key('results', c, s), text(r.index))
    if winner and winner == packed then return 'duplicate' end
    return 'done'
  end
  if site ~= args.site or not contains(parse(tasks), r.index) then return 'refused' end
  local record = readTask(c, s, r.index)
  if r.done then
    if state ~= 'queued' and state ~= 'assigned' and state ~= 'running' and state ~= 'held' then return 'stale' end
    supersede(r, record)
    move(c, s, { r.index }, { queued = true, assigned = true, running = true, held = true }, 'done')
    if record then
      record.bundle = nil
      writeTask(c, s, r.index, record)
    end
    win(r, packed)
    return 'accepted'
  end
  local name = text(r.index) .. ':' .. r.fence
  local known = redis.call('HGET', key('history', c, s), name)
  if known and string.sub(known, 1, 1) == 'R' then return 'duplicate' end
  redis.call('HSET', key('history', c, s), name, 'R' .. packed)
  if not known then
    record = record or { attempts = 0, payload = 0, infrastructure = 0, fences = '' }
    record.attempts = record.attempts + 1
    record.fences = record.fences == '' and r.fence or (record.fences .. ',' .. r.fence)
    if state == 'assigned' or state == 'running' or state == 'queued' then
      local bundle = locateBundle(c, s, r.index, record)
      record.bundle = bundle and bundle.id or nil
    end
  end
  record.reason = r.reason
  writeTask(c, s, r.index, record)
  countFailure(c, s, r.reason, r.detail)
  return 'stale'
end

for i, r in ipairs(args.results) do
  local record = readBundle(r.bundle)
  local size = tonumber(redis.call('HGET', key('step', r.campaign, r.step), 'size') or 0)
  if r.index >= size then
    verdicts[i] = 'refused'
  elseif record and record.state == 'leased' and record.fence == r.fence and record.campaign == r.campaign and
      record.step == r.step and contains(record.spans, r.index) then
    verdicts[i] = record.site == args.site and onCurrent(r, record, ARGV[i + 1]) or 'refused'
  else
    verdicts[i] = onLate(r, ARGV[i + 1])
  end
end
return answer({ outcome = 1, verdicts = verdicts, ended = ended, orders = orders, retries = retries })
