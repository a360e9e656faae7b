-- Nothing more is granted to a session in this group; what it holds is named, to be expired one by one.
-- args: session
-- outcomes: 1 buried (leases: list of {bundle, fence})
-- events: none; each lease.expired follows
redis.call('HSET', key('dead'), args.session, text(nowMs()))
local leases = {}
for b, fence in pairs(hash(key('leases', args.session))) do leases[#leases + 1] = { bundle = b, fence = fence } end
redis.call('DEL', key('reply', args.session))
return answer({ outcome = 1, leases = leases })
