-- Drops what is only history of a site. Each entry goes as it was read: one that changed meanwhile stays.
-- keys: KEYS[1] the site's base; holders, pilots, session:<id>
-- args: holders (list of {holder, session}: sessions whose record is gone), pilots (list of {pilot, about})
-- outcomes: 1 dropped (entries: how many)
-- events: none
local entries = 0
for _, one in ipairs(args.holders) do
  if redis.call('HGET', key('holders'), one.holder) == one.session and
      redis.call('EXISTS', key('session', one.session)) == 0 then
    entries = entries + redis.call('HDEL', key('holders'), one.holder)
  end
end
for _, one in ipairs(args.pilots) do
  if redis.call('HGET', key('pilots'), one.pilot) == one.about then
    entries = entries + redis.call('HDEL', key('pilots'), one.pilot)
  end
end
return answer({ outcome = 1, entries = entries })
