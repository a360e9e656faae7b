-- Ends one lease whose holder is gone or never confirmed it. Running tasks were attempts and are charged to
-- infrastructure; assigned ones were not started and go back uncharged, but for those of a grant that was never
-- confirmed: of such grants a task may have `unconfirmedFree`, the next is charged too. Else what no holder can take
-- (it dies of it, say) would be granted for ever.
-- args: bundle, fence (nil: whatever it is), provisional (true: only while unconfirmed and past its deadline),
--   rules (see endAttempt; and unconfirmedFree)
-- outcomes: 1 expired (campaign, step, tasks, lost), 2 nothing to do
-- events: lease.expired, task.requeued, task.failed, task.held, task.cancelled
local record = readBundle(args.bundle)
if not record or record.state ~= 'leased' or (args.fence and record.fence ~= args.fence) then
  return answer({ outcome = 2 })
end
if args.provisional then
  local deadline = redis.call('ZSCORE', key('provisional'), args.bundle)
  if not deadline or tonumber(deadline) > nowMs() then return answer({ outcome = 2 }) end
end
local c, s = record.campaign, record.step
local list = indices(record.spans)
local isConfirmed = not redis.call('ZSCORE', key('provisional'), args.bundle)
closeBundle(record)
remember(c, record.fence, record.site, list)
local unstarted, lost = {}, 0
local function charge(index, reason)
  lost = lost + 1
  redis.call('HSET', key('history', c, s), text(index) .. ':' .. record.fence, 'E' .. cmsgpack.pack({
    bundle = record.id, fences = { tonumber(record.fence) }, reason = reason, site = record.site,
    pilot = record.holder, wallMs = nowMs() - tonumber(record.grantedMs),
  }))
  countFailure(c, s, reason, '')
  local rules = args.rules
  rules.reason, rules.site, rules.node = reason, record.site, ''
  endAttempt(c, s, index, record.fence, rules)
end
local function countUnconfirmed(index)
  local task = readTask(c, s, index) or { attempts = 0, payload = 0, infrastructure = 0, fences = '' }
  task.unconfirmed = (task.unconfirmed or 0) + 1
  writeTask(c, s, index, task)
  return task.unconfirmed
end
local reason = args.rules.reason
for _, index in ipairs(list) do
  if stateOf(c, s, index) == 'running' then
    charge(index, reason)
  elseif reason == 'node.lost' and not isConfirmed and countUnconfirmed(index) > args.rules.unconfirmedFree then
    charge(index, 'grant.unconfirmed')
  else
    unstarted[#unstarted + 1] = index
  end
end
if redis.call('HGET', key('campaign', c), 'desired') == 'cancelled' then
  move(c, s, unstarted, LEASED, 'cancelled')
else
  move(c, s, unstarted, LEASED, 'queued')
  backToQueue(c, s, unstarted)
end
return answer({ outcome = 1, campaign = c, step = s, tasks = #list, lost = lost, open = openTasks(c, s) })
