-- Ends one lease whose holder is gone or never confirmed it. Running tasks were attempts and are charged to
-- infrastructure; assigned ones were not started and go back uncharged.
-- args: bundle, fence (nil: whatever it is), provisional (true: only while unconfirmed and past its deadline),
--   reason, limit, exhausted, backOffMs, longestMs, avoidMs, wall (times for the record)
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
closeBundle(record)
remember(c, record.fence, record.site, list)
local unstarted, lost = {}, 0
for _, index in ipairs(list) do
  if stateOf(c, s, index) == 'running' then
    lost = lost + 1
    redis.call('HSET', key('history', c, s), text(index) .. ':' .. record.fence, 'E' .. cmsgpack.pack({
      bundle = record.id, fences = { tonumber(record.fence) }, reason = args.reason, site = record.site,
      pilot = record.holder, wallMs = nowMs() - tonumber(record.grantedMs),
    }))
    countFailure(c, s, args.reason, '')
    endAttempt(c, s, index, record.fence, {
      charge = 'infrastructure', retry = true, limit = args.limit, exhausted = args.exhausted, reason = args.reason,
      backOffMs = args.backOffMs, longestMs = args.longestMs, avoidMs = args.avoidMs, site = record.site, node = '',
    })
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
