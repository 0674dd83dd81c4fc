-- Durable publishing for Tollgate, version 1. The gateway loads this as the Redis function library
-- "tollgate"; where functions are missing each entry runs as a script.
--
-- KEYS[1] is the Redis channel, <prefix><channel>. It is also the key of a stream with the last
-- publications (entry <epoch>-<offset>, field d). Beside it, in the same hash slot:
--   <key>:{<key>}        hash: e epoch, o last offset, r the server process that wrote last
--   <key>:{<key>}:<key>  an idempotency key's answer, kept for 5 minutes
-- An epoch is a time in microseconds and never comes again. A new one begins when there is no
-- position, or when another server process holds the data than the one that wrote last: then the
-- last writes may be lost (restart, failover), and their offsets must not be given out twice.

local META_MS = 604800000
local KEY_SECONDS = 300

local function meta_key(key)
  return key .. ':{' .. key .. '}'
end

-- epoch, offset, and what INFO says of this server
local function current(key)
  local info = redis.call('INFO', 'server')
  local run = string.match(info, 'run_id:(%w+)') or ''
  local meta = redis.call('HMGET', meta_key(key), 'e', 'o', 'r')
  if meta[1] and meta[3] == run then
    return meta[1], tonumber(meta[2]), info, run
  end
  local time = redis.call('TIME')
  local epoch = tonumber(time[1]) * 1000000 + tonumber(time[2])
  if meta[1] and epoch <= tonumber(meta[1]) then
    epoch = tonumber(meta[1]) + 1
  end
  epoch = string.format('%.0f', epoch)
  redis.call('DEL', key)
  redis.call('HSET', meta_key(key), 'e', epoch, 'o', 0, 'r', run)
  redis.call('PEXPIRE', meta_key(key), META_MS)
  return epoch, 0, info, run
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

-- FCALL tollgate_open 1 <prefix><channel>: the position, [offset, epoch]; begins a history.
local function open(keys, args)
  local epoch, offset = current(keys[1])
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
    kept = meta_key(key) .. ':' .. idempotency
    local before = redis.call('GET', kept)
    if before then
      local offset, epoch = string.match(before, '(%d+) (%d+)')
      return {tonumber(offset), epoch}
    end
  end
  local epoch, offset, info, run = current(key)
  offset = offset + 1
  local last = string.format('%.0f', offset)
  redis.call('XADD', key, 'MAXLEN', '=', maxlen, epoch .. '-' .. last, 'd', payload)
  redis.call('PEXPIRE', key, ttl * 1000)
  redis.call('HSET', meta_key(key), 'o', last)
  redis.call('PEXPIRE', meta_key(key), math.max(META_MS, ttl * 1000))
  if kept then
    redis.call('SET', kept, last .. ' ' .. epoch, 'EX', KEY_SECONDS)
  end
  -- A byte that no JSON text begins with tells a durable publication from a plain one.
  local message = '\1' .. epoch .. ':' .. last .. '\n' .. payload
  if string.find(info, 'mode:cluster', 1, true) then
    redis.call('SPUBLISH', key, message)
  else
    redis.call('PUBLISH', key, message)
  end
  return {offset, epoch}
end
