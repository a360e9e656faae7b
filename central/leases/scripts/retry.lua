-- A person's retry: failed or held tasks of a step are queued again with fresh credit, a part per call, until `more` is
-- false. Each task is retried once per request, however often that is repeated.
-- args: campaign, step, size, from (list of states), request (its id), cursor (task to go on from)
-- outcomes: 1 done so far (tasks: how many, more, cursor), 2 the campaign is cancelled
-- events: task.requeued
local c, s = args.campaign, args.step
if redis.call('HGET', key('campaign', c), 'desired') == 'cancelled' then return answer({ outcome = 2 }) end
local from = {}
for _, state in ipairs(args.from) do from[state] = true end
local MOST, CHUNK = 1000, 65536
local list, at = {}, args.cursor
local last = math.min(args.size, args.cursor + CHUNK)
local bytes = redis.call('GETRANGE', key('state', c, s), args.cursor / 2, math.ceil(last / 2) - 1)
while at < last and #list < MOST do
  local byte = string.byte(bytes, math.floor((at - args.cursor) / 2) + 1) or 0
  for half = 0, 1 do
    local code = half == 0 and math.floor(byte / 16) or byte % 16
    if at + half < last and from[NAME[code]] then
      local record = readTask(c, s, at + half) or { attempts = 0, fences = '' }
      if record.request ~= args.request then
        record.payload, record.infrastructure, record.unconfirmed = 0, 0, nil
        record.avoid, record['until'], record.bundle = nil, nil, nil
        record.request = args.request
        record.refused = nil
        writeTask(c, s, at + half, record)
        list[#list + 1] = at + half
      end
    end
  end
  at = at + 2
end
local now = nowMs()
for _, index in ipairs(move(c, s, list, from, 'queued')) do
  redis.call('ZADD', key('retry', c, s), now, text(index))
end
if #list > 0 then
  redis.call('DEL', key('refused', c, s))
  redis.call('HDEL', key('campaign', c), 'endedMs')
  redis.call('SADD', key('active'), c)
end
return answer({ outcome = 1, tasks = #list, more = at < args.size, cursor = at })
