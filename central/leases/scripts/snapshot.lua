-- All that is known of a step at one moment, for verify. Reads only.
-- args: campaign, step
-- outcomes: not numbered: answers the state string, then msgpack of the rest
-- events: none
local c, s = args.campaign, args.step
local bundles = {}
for _, b in ipairs(redis.call('SMEMBERS', key('bundles', c, s))) do
  local record = hash(key('bundle', b))
  record.id = b
  record.queued = record.state == 'queued' and
      redis.call('ZSCORE', key('queue', queueId(record)), b) ~= false or false
  record.listed = record.state == 'leased' and redis.call('HGET', key('leases', record.session), b) == record.fence
  record.deadline = redis.call('ZSCORE', key('provisional'), b) or nil
  bundles[#bundles + 1] = record
end
return {
  redis.call('GET', key('state', c, s)) or '',
  cmsgpack.pack({
    counts = hash(key('counts', c, s)), ready = redis.call('ZRANGE', key('ready', c, s), 0, -1),
    retry = redis.call('ZRANGE', key('retry', c, s), 0, -1), bundles = bundles,
    results = redis.call('HKEYS', key('results', c, s)), blocks = hash(key('blocks', c, s)),
  }),
}
