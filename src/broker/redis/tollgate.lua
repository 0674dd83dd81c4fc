-- Durable publishing for Tollgate, version 3. The gateway loads this as the Redis function library
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
-- not be given out twice.

local META_MS = 604800000
-- A history without a publication; whoever follows it opens it again before that.
local EMPTY_MS = 3600000
local KEY_SECONDS = 300

local function meta_key(key)
  return key .. ':{' .. key .. '}'
end

-- epoch, offset, and what INFO says of this server; an epoch that began before `fence` is over
local function current(key, fence)
  local info = redis.call('INFO', 'server')
  local process = string.match(info, 'run_id:(%w+)') or ''
  -- Changes at every promotion: a server that was a replica in between may have missed something.
  local reign = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
  local run = string.sub(process, 1, 12) .. ':' .. string.sub(reign, 1, 12)
  local meta = redis.call('HMGET', meta_key(key), 'e', 'o', 'r', 'b')
  if meta[1] and meta[3] == run and tonumber(meta[4] or meta[1]) >= fence then
    if meta[2] == '0' then
      redis.call('PEXPIRE', meta_key(key), EMPTY_MS)
    end
    return meta[1], tonumber(meta[2]), info
  end
  local time = redis.call('TIME')
  -- A clock that was put back must not make it too old at once.
  local epoch = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), fence)
  local began = string.format('%.0f', epoch)
  if meta[1] and epoch <= tonumber(meta[1]) then
    epoch = tonumber(meta[1]) + 1
  end
  epoch = string.format('%.0f', epoch)
  redis.call('DEL', meta_key(key) .. ':stream')
  redis.call('HSET', meta_key(key), 'e', epoch, 'o', 0, 'r', run, 'b', began)
  redis.call('PEXPIRE', meta_key(key), EMPTY_MS)
  return epoch, 0, info
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
  local idempotency = args[4]
  if ttl == nil then
    return redis.error_reply('ERR ttl_seconds is a whole number from 1 to 31536000')
  end
  if maxlen == nil then
    return redis.error_reply('ERR maxlen is a whole number from 1 to 100000')
  end
  local kept
  if idempotency ~= nil and idempotency ~= '' then
    if #idempotency > 256 then
      return redis.error_reply('ERR idempotency_key is longer than 256 bytes')
    end
    kept = meta_key(key) .. ':id:' .. idempotency
    local before = redis.call('GET', kept)
    if before then
      local offset, epoch = string.match(before, '(%d+) (%d+)')
      return {tonumber(offset), epoch}
    end
  end
  local epoch, offset, info = current(key, 0)
  offset = offset + 1
  local last = string.format('%.0f', offset)
  local stream = meta_key(key) .. ':stream'
  redis.call('XADD', stream, 'MAXLEN', '=', maxlen, epoch .. '-' .. last, 'd', payload)
  redis.call('PEXPIRE', stream, ttl * 1000)
  redis.call('HSET', meta_key(key), 'o', last)
  redis.call('PEXPIRE', meta_key(key), math.max(META_MS, ttl * 1000))
  local time = redis.call('TIME')
  -- A byte that no JSON text begins with tells a durable publication from a plain one.
  local head = '\1' .. epoch .. ':' .. last .. ':' .. time[1] .. string.format('%06d', time[2])
  local message = head .. '\n' .. payload
  if string.find(info, 'mode:cluster', 1, true) then
    redis.call('SPUBLISH', key, message)
  else
    redis.call('PUBLISH', key, message)
  end
  -- Only now: where publishing was refused, the same key may try again.
  if kept then
    redis.call('SET', kept, last .. ' ' .. epoch, 'EX', KEY_SECONDS)
  end
  return {offset, epoch}
end
