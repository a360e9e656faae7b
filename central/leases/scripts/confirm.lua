-- The holder has processed the grants up to a sequence: their leases hold as long as its session lives. Grants after
-- it and before a pull that it has since sent never reached it (it has one pull at a time): no later message confirms
-- those, they are taken back at their deadline.
-- args: session, processed, opened (sequence of the pull that says so, or nil)
-- outcomes: 1 confirmed (bundles: how many)
-- events: lease.confirmed
local unconfirmed = key('unconfirmed', args.session)
local list = redis.call('ZRANGEBYSCORE', unconfirmed, '-inf', args.processed)
for _, b in ipairs(list) do
  redis.call('ZREM', unconfirmed, b)
  redis.call('ZREM', key('provisional'), b)
end
if args.opened then
  for _, b in ipairs(redis.call('ZRANGEBYSCORE', unconfirmed, '-inf', '(' .. text(args.opened))) do
    redis.call('ZADD', unconfirmed, '+inf', b)
  end
end
return answer({ outcome = 1, bundles = #list })
