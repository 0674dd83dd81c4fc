-- Durable publishing for Tollgate, version 5. The gateway loads this, behind `json.lua` and `checks.lua`, as the Redis
-- function library "tollgate"; where functions are missing each entry runs as a script.
--
-- KEYS[1] is the Redis channel, <prefix><channel>. What is kept has keys of its own, in the same
-- hash slot, and never that one, which may be somebody else's:
--   <key>:{<key>}          hash: e epoch, o last offset, r the server's reign that wrote last, b when the
--                          epoch began by that server's clock (e may be ahead of it: an older server's was),
--                          t and g what the outbox's relay guards (`relay.lua`)
--   <key>:{<key>}:stream   stream of the last publications: entry <epoch>-<offset>, field d; field i has
--                          the row's identity, if it came out of an outbox
--   <key>:{<key>}:id:<id>  the answer to an idempotency key, kept for 5 minutes
-- An epoch is a time in microseconds and never comes again. A new one begins when there is no
-- position, or when another server holds the data than the one that wrote last, or the same one
-- after it was a replica: then the last writes may be lost (restart, failover), and their offsets must
-- not be given out twice. A new one begins too where these keys hold what this file never writes:
-- whoever may publish may also write there, and must not be able to stop a channel for good.

local META_MS = 604800000
-- A history without a publication; whoever follows it opens it again before that.
local EMPTY_MS = 3600000
local KEY_SECONDS = 300
-- Offsets and epochs stay below what a Lua number holds exactly.
local MAX_OFFSET = 1000000000000000
local MAX_EXACT = 9007199254740992
-- An epoch that is further ahead of this server's clock is nobody's clock.
local TEN_YEARS = 315360000000000
local function meta_key(key)
  return key .. ':{' .. key .. '}'
end

local function is_wrong_type(answer)
  return type(answer) == 'table' and answer.err and string.find(answer.err, 'WRONGTYPE', 1, true)
end

-- A text of digits below a bound, as a number.
local function digits(text, bound)
  if type(text) ~= 'string' or #text > 16 or not string.match(text, '^%d+$') then
    return nil
  end
  local number = tonumber(text)
  return number < bound and number or nil
end

local function now_micros()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2]), time
end

-- Begins another epoch; `old` is the one before, where that is known. What is in doubt ends with an
-- epoch; the terms, which keep late calls of a former relay out, do not.
local function begin(key, run, old, fence, terms)
  local now = now_micros()
  -- A clock that was put back must not make it too old at once.
  local epoch = math.max(now, fence)
  local began = string.format('%.0f', epoch)
  if old and epoch <= old and old < now + TEN_YEARS then
    epoch = old + 1
  end
  epoch = string.format('%.0f', epoch)
  redis.call('DEL', meta_key(key), meta_key(key) .. ':stream')
  redis.call('HSET', meta_key(key), 'e', epoch, 'o', 0, 'r', run, 'b', began)
  if terms then
    redis.call('HSET', meta_key(key), 't', terms)
  end
  redis.call('PEXPIRE', meta_key(key), terms and META_MS or EMPTY_MS)
  return epoch
end

-- What never changes while a server's process lives, and with it this library: the process, and the command
-- that publishes. Asking takes ten times as long as a write.
local process, command
local function ask_server()
  local info = redis.call('INFO', 'server')
  process = string.sub(string.match(info, 'run_id:(%w+)') or '', 1, 12)
  command = string.find(info, 'mode:cluster', 1, true) and 'SPUBLISH' or 'PUBLISH'
end

-- Where a channel stands: `epoch`, `offset`, the server's reign `run`, the command that publishes, and
-- what the relay guards. An epoch that began before `fence` is over.
local function current(key, fence)
  if not process then
    ask_server()
  end
  -- Changes at every promotion: a server that was a replica in between may have missed something.
  local reign = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
  local state = {key = key, command = command, run = process .. ':' .. string.sub(reign, 1, 12)}

  local meta = redis.pcall('HMGET', meta_key(key), 'e', 'o', 'r', 'b', 't', 'g')
  if meta.err and not is_wrong_type(meta) then
    -- Not allowed, for example: said in Redis' own way.
    redis.call('HMGET', meta_key(key), 'e')
  end
  local epoch, offset = digits(meta[1], MAX_EXACT), digits(meta[2], MAX_OFFSET)
  local began = digits(meta[4] or meta[1], MAX_EXACT)
  state.terms = type(meta[5]) == 'string' and #meta[5] < 4096 and meta[5] or nil
  if epoch and offset and began and meta[3] == state.run and began >= fence then
    state.epoch, state.offset = meta[1], offset
    state.guarded = type(meta[6]) == 'string' and meta[6] ~= '' and meta[6] or nil
    if offset == 0 and not state.terms then
      redis.call('PEXPIRE', meta_key(key), EMPTY_MS)
    end
    return state
  end
  state.epoch, state.offset = begin(key, state.run, epoch, fence, state.terms), 0
  return state
end

local function whole(value, default, least, most)
  if value == nil or value == '' then
    return default
  end
  local number = tonumber(value)
  if number == nil or number ~= math.floor(number) or number < least or number > most then
    return nil
  end
  return number
end

-- FCALL tollgate_open 1 <prefix><channel> [fence]: the position, [offset, epoch]; begins a history.
-- The fence is a time in microseconds: an older master took publications until then (Sentinel).
local function open(keys, args)
  local state = current(keys[1], tonumber(args[1]) or 0)
  return {state.offset, state.epoch}
end

-- What of a publication's arguments is refused, or nil.
local function wrong_arguments(ttl, maxlen, idempotency)
  if ttl == nil then
    return 'ttl_seconds is a whole number from 1 to 31536000'
  end
  if maxlen == nil then
    return 'maxlen is a whole number from 1 to 100000'
  end
  if #idempotency > 256 then
    return 'idempotency_key is longer than 256 bytes'
  end
  return nil
end

-- The arguments that say how a publication is kept.
local function keeping(ttl, maxlen, idempotency)
  return whole(ttl, 600, 1, 31536000), whole(maxlen, 100, 1, 100000), idempotency or ''
end

local function id_key(key, idempotency)
  return meta_key(key) .. ':id:' .. idempotency
end

-- The first answer to an idempotency key: offset and epoch, or nil.
local function answered(key, idempotency)
  if idempotency == '' then
    return nil
  end
  local before = redis.pcall('GET', id_key(key, idempotency))
  local offset, epoch = string.match(type(before) == 'string' and before or '', '^(%d+) (%d+)$')
  return offset and {tonumber(offset), epoch, -1}
end

-- Kept and published, or neither: what is not allowed is found out before anything is kept.
local function forbidden(state, idempotency)
  if not redis.acl_check_cmd then
    return nil
  end
  if not redis.acl_check_cmd(state.command, state.key, '') then
    return 'NOPERM this user may not ' .. state.command .. ' on this channel: nothing was kept'
  end
  if idempotency ~= '' and not redis.acl_check_cmd('SET', id_key(state.key, idempotency), '', 'EX', KEY_SECONDS) then
    return 'NOPERM this user may not SET an idempotency key: nothing was kept'
  end
  return nil
end

-- Appends to the stream. Answers an error, or nothing.
local function append(state, payload, maxlen, identity)
  local stream = meta_key(state.key) .. ':stream'
  local entry = {'XADD', stream, 'MAXLEN', '=', maxlen, '', 'd', payload}
  if identity then
    entry[9], entry[10] = 'i', identity
  end
  entry[6] = state.epoch .. '-' .. string.format('%.0f', state.offset + 1)
  local added = redis.pcall(unpack(entry))
  if type(added) == 'table' and added.err then
    if not is_wrong_type(added) and not string.find(added.err, 'equal or smaller', 1, true) then
      return added
    end
    -- Somebody else has written to the stream.
    state.epoch, state.offset = begin(state.key, state.run, tonumber(state.epoch), 0, state.terms), 0
    state.guarded, state.known = state.guarded and '', {}
    entry[6] = state.epoch .. '-1'
    redis.call(unpack(entry))
  end
  state.offset = state.offset + 1
  return nil
end

-- Appends, moves the position, publishes. Answers an error, or nothing and who heard it.
local function keep(state, payload, ttl, maxlen, idempotency, identity)
  local meta, stream = meta_key(state.key), meta_key(state.key) .. ':stream'
  local refused = append(state, payload, maxlen, identity)
  if refused then
    return refused
  end
  local last = string.format('%.0f', state.offset)
  redis.call('PEXPIRE', stream, ttl * 1000)
  redis.call('HSET', meta, 'o', last)
  if identity then
    state.guarded = state.guarded .. ' ' .. identity .. ':' .. last
    redis.call('HSET', meta, 'g', state.guarded)
  end
  -- While a row is in doubt, its guard must not end, however long the relay is away.
  if not state.guarded then
    redis.call('PEXPIRE', meta, math.max(META_MS, ttl * 1000))
  end

  local _, time = now_micros()
  -- A byte that no JSON text begins with tells a durable publication from a plain one.
  local head = '\1' .. state.epoch .. ':' .. last .. ':' .. time[1] .. string.format('%06d', time[2])
  local heard = redis.pcall(state.command, state.key, head .. '\n' .. payload)
  if type(heard) == 'table' and heard.err then
    -- Before Redis 7 that cannot be asked beforehand. The next publication begins another epoch.
    redis.call('DEL', meta, stream)
    return heard
  end
  if idempotency ~= '' then
    redis.call('SET', id_key(state.key, idempotency), last .. ' ' .. state.epoch, 'EX', KEY_SECONDS)
  end
  return nil, heard
end

-- FCALL tollgate_publish 1 <prefix><channel> <json> [ttl_seconds maxlen idempotency_key raw]
-- answers [offset, epoch, heard]: how many subscribing connections Redis handed it to, -1 for a
-- repeated idempotency key. A fourth element is a warning.
local function publish(keys, args)
  local key, payload = keys[1], args[1]
  if key == nil or key == '' or payload == nil then
    return redis.error_reply('ERR tollgate_publish 1 <prefix><channel> <json> [ttl_seconds maxlen idempotency_key raw]')
  end
  if args[5] and args[5] ~= '' and args[5] ~= 'raw' then
    return redis.error_reply('ERR the fifth argument is raw or nothing')
  end
  local ttl, maxlen, idempotency = keeping(args[2], args[3], args[4])
  local refused, warning, gateway = wrong_arguments(ttl, maxlen, idempotency), nil, nil
  if not refused then
    refused, warning, gateway = judge(key, payload, args[5] == 'raw')
  end
  if refused then
    return redis.error_reply('ERR ' .. refused)
  end

  local answer = answered(key, idempotency)
  if not answer then
    local state = current(key, 0)
    local denied = forbidden(state, idempotency)
    if denied then
      return redis.error_reply(denied)
    end
    local failed, heard = keep(state, payload, ttl, maxlen, idempotency)
    if failed then
      return failed
    end
    answer = {state.offset, state.epoch, heard, warning}
  end
  -- Replicas of version 0.1, which call this too, take two elements only.
  if gateway and gateway.beside > 0 and gateway.beside > tonumber(redis.call('TIME')[1]) then
    return {answer[1], answer[2]}
  end
  return answer
end

-- FCALL_RO tollgate_stated 0: what the gateways have stated here, see `checks.lua`.
local function stated()
  local answer = {string.format('%.0f', GRACE)}
  for prefix, gateway in pairs(GATEWAYS) do
    answer[#answer + 1] = prefix
    for _, field in ipairs({'seen', 'bytes', 'lenient', 'beside'}) do
      answer[#answer + 1] = string.format('%.0f', gateway[field])
    end
  end
  return answer
end

-- FCALL_RO tollgate_history 1 <prefix><channel> <count> <bytes>: e, o, r, b as they are kept, and the
-- last publications, the newest first, as id and payload in turn: no more than so many, and no more
-- bytes than that. One that would go beyond ends it.
local function history(keys, args)
  local key, count, bytes = keys[1], tonumber(args[1]) or 0, tonumber(args[2]) or 0
  local meta = redis.pcall('HMGET', meta_key(key), 'e', 'o', 'r', 'b')
  if meta.err then
    return meta
  end
  local entries = {}
  local answer = {meta[1], meta[2], meta[3], meta[4], entries}
  if not digits(meta[1], MAX_EXACT) or not digits(meta[2], MAX_OFFSET) then
    return answer
  end

  local from, to = meta[1] .. '-0', meta[1] .. '-' .. meta[2]
  -- One at first: large entries must be noticed before many of them are read.
  local step, size, found = 1, 0, 0
  while found < count do
    local chunk = redis.pcall('XREVRANGE', meta_key(key) .. ':stream', to, from, 'COUNT', math.min(step, count - found))
    if chunk.err or #chunk == 0 then
      return answer
    end
    for _, entry in ipairs(chunk) do
      local id, fields = entry[1], entry[2]
      local payload = fields[1] == 'd' and fields[2] or ''
      size, found = size + #payload, found + 1
      if size > bytes then
        return answer
      end
      entries[#entries + 1] = id
      entries[#entries + 1] = payload
      local offset = tonumber(string.match(id, '%-(%d+)$'))
      if not offset or offset <= 1 then
        return answer
      end
      to = meta[1] .. '-' .. string.format('%.0f', offset - 1)
    end
    step = math.max(1, math.min(256, math.floor(2 * bytes / (size / found + 1))))
  end
  return answer
end
