-- Ends, in bulk, tasks that will not run: a part per call, until `more` is false.
-- mode skip: blocked tasks of a step become skipped. mode cancel: blocked, queued and held ones become cancelled;
-- assigned and running ones are ended by their holders. The desired state is set before, so nothing new is granted.
-- args: campaign, step, size, mode, cursor (task to go on from)
-- outcomes: 1 done so far (more, cursor), 2 refused: the campaign is not cancelled, or the step was released
-- events: task.skipped, task.cancelled
local c, s = args.campaign, args.step
local released = redis.call('HGET', key('step', c, s), 'released')
if args.mode == 'skip' then
  if released == '1' or released == 'reopening' then return answer({ outcome = 2 }) end
  if released ~= 'skipped' then redis.call('HSET', key('step', c, s), 'released', 'skipped') end
elseif redis.call('HGET', key('campaign', c), 'desired') ~= 'cancelled' then
  return answer({ outcome = 2 })
end
local to = args.mode == 'skip' and 'skipped' or 'cancelled'

-- Asked again with every look at an open campaign: where nothing is left to be ended, this is all it costs.
local states = args.mode == 'skip' and { blocked = true } or { blocked = true, queued = true, held = true }
local left = 0
for state in pairs(states) do left = left + tonumber(redis.call('HGET', key('counts', c, s), state) or 0) end
if left == 0 then return answer({ outcome = 1, more = false, cursor = args.size }) end

if args.mode == 'cancel' and args.cursor == 0 then
  local budget = 200
  for _, b in ipairs(redis.call('SMEMBERS', key('bundles', c, s))) do
    -- Most may be leased, and those are not ended here.
    if redis.call('HGET', key('bundle', b), 'state') == 'queued' then
      local record = readBundle(b)
      move(c, s, indices(record.spans), { queued = true }, 'cancelled')
      closeBundle(record)
      budget = budget - 1
      if budget == 0 then return answer({ outcome = 1, more = true, cursor = 0 }) end
    end
  end
  local due = redis.call('ZRANGE', key('retry', c, s), 0, 4999)
  if #due > 0 then
    redis.call('ZREM', key('retry', c, s), unpack(due))
    local list = {}
    for i, index in ipairs(due) do list[i] = tonumber(index) end
    move(c, s, list, { queued = true }, 'cancelled')
    return answer({ outcome = 1, more = true, cursor = 0 })
  end
end

-- Whole bytes through a table, then a last odd task by itself. What is still queued here is ready: the ranges are
-- cut by as much as this call turns.
local CHUNK = 65536
local from = args.cursor / 2
local whole = math.floor(args.size / 2)
local upTo = math.min(from + CHUNK, whole)
local more = upTo < whole
local endBefore = more and upTo * 2 or args.size
if args.mode == 'cancel' then
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', key('ready', c, s), '-inf', '(' .. text(endBefore))) do
    redis.call('ZREM', key('ready', c, s), member)
    local last = tonumber(string.match(member, '%-(%d+)'))
    if last >= endBefore then
      redis.call('ZADD', key('ready', c, s), endBefore, text(endBefore) .. '-' .. text(last))
    end
  end
end
local turns = { [0] = CODE[to] }
if args.mode == 'cancel' then
  turns[CODE.queued] = CODE.cancelled
  turns[CODE.held] = CODE.cancelled
end
if from < upTo then
  local bytes = redis.call('GETRANGE', key('state', c, s), from, upTo - 1)
  local map, seen, moves = {}, {}, {}
  for i = 1, #bytes do
    local byte = string.byte(bytes, i)
    seen[byte] = (seen[byte] or 0) + 1
  end
  for byte, n in pairs(seen) do
    local high, low = math.floor(byte / 16), byte % 16
    for _, code in ipairs({ high, low }) do
      if turns[code] then moves[NAME[code]] = (moves[NAME[code]] or 0) + n end
    end
    map[string.char(byte)] = string.char((turns[high] or high) * 16 + (turns[low] or low))
  end
  if next(moves) then
    redis.call('SETRANGE', key('state', c, s), from, (string.gsub(bytes, '.', map)))
    recount(c, s, moves, to)
  end
end
if not more and args.size % 2 == 1 then
  move(c, s, { args.size - 1 }, states, to)
end
return answer({ outcome = 1, more = more, cursor = upTo * 2 })
