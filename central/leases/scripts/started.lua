-- Tasks of leases that began to run, which also proves that their grant arrived. A part whose fence is not the lease's is passed over.
-- Where they run is noted with the lease, so it goes with it; tasks that ended before this was said leave no trace.
-- args: site, parts (list of {bundle, fence, tasks, node: may be missing})
-- outcomes: 1 noted (tasks: how many)
-- events: task.started
local tasks = 0
for _, part in ipairs(args.parts) do
  local record = readBundle(part.bundle)
  if record and record.state == 'leased' and record.fence == part.fence and record.site == args.site then
    redis.call('ZREM', key('provisional'), record.id)
    redis.call('ZREM', key('unconfirmed', record.session), record.id)
    local list = split(record.spans, parse(part.tasks))
    tasks = tasks + #move(record.campaign, record.step, list, { assigned = true }, 'running')
    if part.node and #list > 0 then
      local at = 'at:' .. part.node
      local there = indices(parse(record[at] or ''))
      for _, index in ipairs(list) do there[#there + 1] = index end
      redis.call('HSET', key('bundle', record.id), at, format(spansOf(there)))
    end
  end
end
return answer({ outcome = 1, tasks = tasks })
