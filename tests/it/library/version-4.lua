#!lua name=tollgate
-- Durable publishing for Tollgate, version 4. The gateway loads this as the Redis function library
-- "tollgate"; where functions are missing each entry runs as a script.
--
-- KEYS[1] is the Redis channel, <prefix><channel>. What is kept has keys of its own, in the same
-- hash slot, and never that one, which may be somebody else's:
--   <key>:{<key>}          hash: e epoch, o last offset, r the server's reign that wrote last, b when the
--                          epoch began by that server's clock (e may be ahead of it: an older server's was)
--   <key>:{<key>}:stream   stream of the last publications: entry <epoch>-<offset>, field d
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
-- An epoch that is further ahead of this server's clock is nobody's clock.
local TEN_YEARS = 315360000000000
-- The gateway that loads the library puts its limits.publication_bytes here.
local MAX_BYTES = 536870912

-- The types of the gateway's own messages: an event of such a type could not be told from one.
local RESERVED = {'connected', 'subscribed', 'unsubscribed', 'refreshed', 'pong', 'token_expiring',
  'gap', 'reconnect', 'error', 'interrupted', 'live', 'close'}

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

-- Begins another epoch; `old` is the one before, where that is known.
local function begin(key, run, old, fence)
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
  redis.call('PEXPIRE', meta_key(key), EMPTY_MS)
  return epoch
end

-- epoch, offset, what INFO says of this server, and its reign; an epoch that began before `fence` is over
local function current(key, fence)
  local info = redis.call('INFO', 'server')
  local process = string.match(info, 'run_id:(%w+)') or ''
  -- Changes at every promotion: a server that was a replica in between may have missed something.
  local reign = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
  local run = string.sub(process, 1, 12) .. ':' .. string.sub(reign, 1, 12)

  local meta = redis.pcall('HMGET', meta_key(key), 'e', 'o', 'r', 'b')
  if meta.err and not is_wrong_type(meta) then
    -- Not allowed, for example: said in Redis' own way.
    redis.call('HMGET', meta_key(key), 'e')
  end
  local epoch, offset = digits(meta[1], 9007199254740992), digits(meta[2], MAX_OFFSET)
  local began = digits(meta[4] or meta[1], 9007199254740992)
  if epoch and offset and began and meta[3] == run and began >= fence then
    if offset == 0 then
      redis.call('PEXPIRE', meta_key(key), EMPTY_MS)
    end
    return meta[1], offset, info, run
  end
  return begin(key, run, epoch, fence), 0, info, run
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

-- The reserved type that an event has, or nil. Only what may have one is taken apart.
local function reserved_type(payload)
  for _, name in ipairs(RESERVED) do
    if string.find(payload, '"' .. name .. '"', 1, true) then
      local ok, event = pcall(cjson.decode, payload)
      if not ok or type(event) ~= 'table' then
        return nil
      end
      for _, reserved in ipairs(RESERVED) do
        if event.type == reserved then
          return reserved
        end
      end
      return nil
    end
  end
  return nil
end

-- What of a publication is refused, as an error; nil where nothing is.
local function refusal(payload, ttl, maxlen, idempotency)
  if #payload > MAX_BYTES then
    return 'ERR the event has ' .. #payload .. ' bytes, the gateway takes ' .. MAX_BYTES ..
      ' (limits.publication_bytes)'
  end
  local reserved = reserved_type(payload)
  if reserved then
    return 'ERR the type "' .. reserved .. '" is reserved for the gateway: give the event another'
  end
  if ttl == nil then
    return 'ERR ttl_seconds is a whole number from 1 to 31536000'
  end
  if maxlen == nil then
    return 'ERR maxlen is a whole number from 1 to 100000'
  end
  if idempotency and #idempotency > 256 then
    return 'ERR idempotency_key is longer than 256 bytes'
  end
  return nil
end

-- FCALL tollgate_open 1 <prefix><channel> [fence]: the position, [offset, epoch]; begins a history.
-- The fence is a time in microseconds: an older master took publications until then (Sentinel).
local function open(keys, args)
  local epoch, offset = current(keys[1], tonumber(args[1]) or 0)
  return {offset, epoch}
end

-- FCALL tollgate_publish 1 <prefix><channel> <json> [ttl_seconds maxlen idempotency_key]
-- answers [offset, epoch].
local function publish(keys, args)
  local key, payload = keys[1], args[1]
  if key == nil or key == '' or payload == nil then
    return redis.error_reply('ERR tollgate_publish 1 <prefix><channel> <json> [ttl_seconds maxlen idempotency_key]')
  end
  local ttl = whole(args[2], 600, 1, 31536000)
  local maxlen = whole(args[3], 100, 1, 100000)
  local idempotency = args[4] ~= '' and args[4] or nil
  local refused = refusal(payload, ttl, maxlen, idempotency)
  if refused then
    return redis.error_reply(refused)
  end

  local kept = idempotency and meta_key(key) .. ':id:' .. idempotency
  if kept then
    local before = redis.pcall('GET', kept)
    local offset, epoch = string.match(type(before) == 'string' and before or '', '^(%d+) (%d+)$')
    if offset then
      return {tonumber(offset), epoch}
    end
  end

  local epoch, offset, info, run = current(key, 0)
  local command = string.find(info, 'mode:cluster', 1, true) and 'SPUBLISH' or 'PUBLISH'
  -- Kept and published, or neither: what is not allowed is found out before anything is kept.
  if redis.acl_check_cmd then
    if not redis.acl_check_cmd(command, key, '') then
      return redis.error_reply('NOPERM this user may not ' .. command .. ' on this channel: nothing was kept')
    end
    if kept and not redis.acl_check_cmd('SET', kept, '', 'EX', KEY_SECONDS) then
      return redis.error_reply('NOPERM this user may not SET an idempotency key: nothing was kept')
    end
  end

  local stream = meta_key(key) .. ':stream'
  offset = offset + 1
  local last = string.format('%.0f', offset)
  local added = redis.pcall('XADD', stream, 'MAXLEN', '=', maxlen, epoch .. '-' .. last, 'd', payload)
  if type(added) == 'table' and added.err then
    if not is_wrong_type(added) and not string.find(added.err, 'equal or smaller', 1, true) then
      return added
    end
    -- Somebody else has written to the stream.
    epoch, offset, last = begin(key, run, tonumber(epoch), 0), 1, '1'
    redis.call('XADD', stream, 'MAXLEN', '=', maxlen, epoch .. '-1', 'd', payload)
  end
  redis.call('PEXPIRE', stream, ttl * 1000)
  redis.call('HSET', meta_key(key), 'o', last)
  redis.call('PEXPIRE', meta_key(key), math.max(META_MS, ttl * 1000))

  local _, time = now_micros()
  -- A byte that no JSON text begins with tells a durable publication from a plain one.
  local head = '\1' .. epoch .. ':' .. last .. ':' .. time[1] .. string.format('%06d', time[2])
  local published = redis.pcall(command, key, head .. '\n' .. payload)
  if type(published) == 'table' and published.err then
    -- Before Redis 7 that cannot be asked beforehand. The next publication begins another epoch.
    redis.call('DEL', meta_key(key), stream)
    return published
  end
  if kept then
    redis.call('SET', kept, last .. ' ' .. epoch, 'EX', KEY_SECONDS)
  end
  return {offset, epoch}
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
  if not digits(meta[1], 9007199254740992) or not digits(meta[2], MAX_OFFSET) then
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

redis.register_function('tollgate_publish', publish)
redis.register_function('tollgate_open', open)
redis.register_function{function_name='tollgate_history', callback=history, flags={'no-writes'}}
redis.register_function{function_name='tollgate_limit', callback=function() return MAX_BYTES end, flags={'no-writes'}}
redis.register_function{function_name='tollgate_version', callback=function() return 4 end, flags={'no-writes'}}
