-- Unstarted tasks come back uncharged. Repeating is harmless: the tasks are no longer in the lease.
-- args: site, parts (list of {bundle, fence, tasks})
-- outcomes: 1 taken back (tasks: how many, steps: `campaign|step` to feed)
-- events: lease.returned, task.requeued, task.cancelled
local tasks, steps = 0, {}
for _, part in ipairs(args.parts) do
  local record = readBundle(part.bundle)
  if record and record.state == 'leased' and record.fence == part.fence and record.site == args.site then
    local c, s = record.campaign, record.step
    local list, rest = split(record.spans, parse(part.tasks))
    keepRest(record, rest)
    remember(c, record.fence, record.site, list)
    if redis.call('HGET', key('campaign', c), 'desired') == 'cancelled' then
      move(c, s, list, LEASED, 'cancelled')
    else
      move(c, s, list, LEASED, 'queued')
      backToQueue(c, s, list)
    end
    tasks = tasks + #list
    steps[#steps + 1] = c .. '|' .. s
  end
end
return answer({ outcome = 1, tasks = tasks, steps = steps })
