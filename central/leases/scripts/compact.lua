-- The winning results of a block of 256 tasks are safe in the blob store: names the block, drops them here.
-- args: campaign, step, block, digest, previous (digest the block had, or ''), indices (list whose results it holds)
-- outcomes: 1 dropped, 2 the block was changed meanwhile: read it anew
-- events: none
local blocks = key('blocks', args.campaign, args.step)
if (redis.call('HGET', blocks, text(args.block)) or '') ~= args.previous then return answer({ outcome = 2 }) end
redis.call('HSET', blocks, text(args.block), args.digest)
local names = {}
for i, index in ipairs(args.indices) do names[i] = text(index) end
if #names > 0 then redis.call('HDEL', key('results', args.campaign, args.step), unpack(names)) end
return answer({ outcome = 1 })
