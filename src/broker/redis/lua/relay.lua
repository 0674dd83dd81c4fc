-- The function library "tollgate", last part: rows of an outbox, each once into its channel's history,
-- whatever dies between the database and here, and for however long.
--
-- The hash beside a channel's history has two more fields:
--   t  for each outbox that has published here the highest term of its relays, as <outbox>=<term> behind
--      a space: a relay takes a new one, out of its database, when it begins to lead and whenever it has
--      lost Redis. A call of a lower term was on its way too long, or comes from a relay that leads no
--      more, and is refused.
--   g  the rows in doubt, each as <outbox>:<id>:<uuid>:<offset> behind a space: published, but not known
--      to be marked in the database. While there are any the hash does not expire.
-- Several services may each have an outbox and publish on one channel: none touches what is another's.

-- Of one outbox, and of all others together: of theirs the oldest are forgotten beyond that.
local MAX_IN_DOUBT = 8192
local MAX_FOREIGN = 1024
-- How much of the history is looked through for rows whose mark the database may have lost: little under
-- most new terms, much behind a promotion or a restoration, which begin a timeline, a term's upper half.
local LOOK = {entries = 64, bytes = 262144}
local LOOK_PROMOTED = {entries = 4096, bytes = 4194304}
local TIMELINE = 4294967296

local ROW = '(%x+:[%d-]+:[%x-]+):(%d+)'
-- Beyond so many, the outbox that has had a new term least recently is forgotten.
local MAX_OUTBOXES = 64
-- No outbox has a term that is so far above its last: somebody else has written it.
local TERMS_AHEAD = 1099511627776

-- The term of an outbox that calls with `term`, 0 before its first, and the terms of the others as they are
-- kept.
local function terms(state, outbox, term)
  local own, others = '0', {}
  for name, term in string.gmatch(state.terms or '', '(%x+)=(%d+)') do
    if name == outbox then
      own = digits(term, MAX_EXACT) and term or '0'
    else
      others[#others + 1] = ' ' .. name .. '=' .. term
    end
  end
  if term and tonumber(own) - term > TERMS_AHEAD then
    own = '0'
  end
  return own, table.concat(others, '', math.max(1, #others - MAX_OUTBOXES + 2))
end

-- The rows of an outbox in doubt, as offsets by identity, and how many there are.
local function in_doubt(state, outbox)
  local rows, count, kept, foreign = {}, 0, {}, {}
  for identity, offset in string.gmatch(state.guarded or '', ROW) do
    if string.sub(identity, 1, #outbox + 1) == outbox .. ':' then
      rows[identity], count = tonumber(offset), count + 1
      kept[#kept + 1] = ' ' .. identity .. ':' .. offset
    else
      foreign[#foreign + 1] = ' ' .. identity .. ':' .. offset
    end
  end
  if #foreign > MAX_FOREIGN then
    state.guarded = table.concat(foreign, '', #foreign - MAX_FOREIGN + 1) .. table.concat(kept)
  end
  return rows, count
end

-- A database that was promoted, or restored, may have forgotten that it marked a row. What the history
-- still has is known by its identity. Answers the rows that were not known before, as they are guarded.
local function add_kept(state, outbox, rows, look)
  local from, to = state.epoch .. '-1', state.epoch .. '-' .. string.format('%.0f', state.offset)
  local seen, size, found = 0, 0, {}
  while seen < look.entries and size < look.bytes do
    local chunk = redis.pcall('XREVRANGE', meta_key(state.key) .. ':stream', to, from, 'COUNT', 4)
    if chunk.err or #chunk == 0 then
      return found
    end
    for _, entry in ipairs(chunk) do
      local offset = tonumber(string.match(entry[1], '%-(%d+)$'))
      local identity = entry[2][3] == 'i' and string.match(entry[2][4] or '', '^%x+:[%d-]+:[%x-]+$')
      if offset and identity and string.sub(identity, 1, #outbox + 1) == outbox .. ':' and not rows[identity] then
        rows[identity] = offset
        found[#found + 1] = identity .. ':' .. string.format('%.0f', offset)
      end
      seen, size = seen + 1, size + #(entry[2][2] or '')
      if not offset or offset <= 1 then
        return found
      end
      to = state.epoch .. '-' .. string.format('%.0f', offset - 1)
    end
  end
  return found
end

-- What a promoted database has forgotten may be more than one call names: all that is kept is in doubt until
-- the relay has asked which of it waits.
local function guard(state, found)
  if #found > 0 then
    state.guarded = (state.guarded or '') .. ' ' .. table.concat(found, ' ')
    redis.call('HSET', meta_key(state.key), 'g', state.guarded)
  end
end

-- Without rows in doubt the position ends as it did before, not ahead of its history.
local function expire_settled(key)
  local meta = meta_key(key)
  redis.call('PEXPIRE', meta, math.max(META_MS, redis.call('PTTL', meta .. ':stream')))
end

-- Publishes one row. Answers [offset, epoch, heard], or why not as a text. The relay has looked at channel
-- and event as a gateway does. What is published already is never refused.
local function publish_row(state, row)
  if state.known[row.identity] then
    return {state.known[row.identity], state.epoch, -1}
  end
  local ttl, maxlen, idempotency = keeping(row.ttl, row.maxlen, row.idempotency)
  local refused = wrong_arguments(ttl, maxlen, idempotency)
  if refused then
    return refused
  end
  local answer = answered(state.key, idempotency)
  if answer then
    return answer
  end

  local failed, heard = keep(state, row.payload, ttl, maxlen, idempotency, row.identity)
  return failed or {state.offset, state.epoch, heard}
end

-- FCALL tollgate_relay 1 <prefix><channel> <outbox> <term> (<identity> <json> <ttl> <maxlen> <idempotency_key>)...
-- answers the outbox' identities in doubt that the call did not name, and then for each row [offset,
-- epoch, heard], or a text that says why it can never be published. An identity is <outbox>:<id>:<uuid>.
-- STALE: the term is over.
local function relay(keys, args)
  local key, outbox, term = keys[1], args[1], digits(args[2], MAX_EXACT)
  if not key or not outbox or not string.find(outbox, '^%x+$') or not term or #args < 7 or (#args - 2) % 5 ~= 0 then
    return redis.error_reply('ERR tollgate_relay 1 <prefix><channel> <outbox> <term> (<identity> <json> <ttl> <maxlen> <idempotency_key>)...')
  end
  local state = current(key, 0)
  local own, others = terms(state, outbox, term)
  local before = tonumber(own)
  if term < before then
    return redis.error_reply('STALE ' .. own .. ' is the term of another relay')
  end
  local denied = forbidden(state, '')
  if denied then
    return redis.error_reply(denied)
  end

  local known, count = in_doubt(state, outbox)
  if count + (#args - 2) / 5 > MAX_IN_DOUBT then
    return redis.error_reply('ERR more than ' .. MAX_IN_DOUBT .. ' rows of the outbox are in doubt')
  end
  local promoted = math.floor(term / TIMELINE) > math.floor(before / TIMELINE)
  if promoted then
    guard(state, add_kept(state, outbox, known, LOOK_PROMOTED))
  end
  local left = {}
  for identity in pairs(known) do
    left[identity] = true
  end
  if term > before then
    state.terms = others .. ' ' .. outbox .. '=' .. args[2]
    redis.call('HSET', meta_key(key), 't', state.terms)
    if not promoted then
      add_kept(state, outbox, known, LOOK)
    end
  end

  redis.call('PERSIST', meta_key(key))
  state.guarded, state.known = state.guarded or '', known
  local answer = {{}}
  for at = 3, #args, 5 do
    local row = {identity = args[at], payload = args[at + 1], ttl = args[at + 2], maxlen = args[at + 3],
      idempotency = args[at + 4]}
    local outcome = publish_row(state, row)
    if outcome.err then
      return outcome
    end
    answer[#answer + 1] = outcome
    left[row.identity] = nil
  end
  if state.guarded == '' then
    expire_settled(key)
  end
  for identity in pairs(left) do
    table.insert(answer[1], identity)
  end
  return answer
end

-- FCALL tollgate_settle 1 <prefix><channel> <outbox> <term> <identity>...: these rows are marked. Answers
-- how many of all outboxes remain in doubt.
local function settle(keys, args)
  local key, outbox, term = keys[1], args[1] or '', digits(args[2], MAX_EXACT)
  local state = current(key, 0)
  local own = terms(state, outbox, term)
  if not term or term < tonumber(own) then
    return redis.error_reply('STALE ' .. own .. ' is the term of another relay')
  end
  local marked = {}
  for at = 3, #args do
    marked[args[at]] = true
  end
  local rest = {}
  for identity, offset in string.gmatch(state.guarded or '', ROW) do
    if not marked[identity] then
      rest[#rest + 1] = identity .. ':' .. offset
    end
  end

  local meta = meta_key(key)
  if #rest > 0 then
    redis.call('HSET', meta, 'g', table.concat(rest, ' '))
  else
    redis.call('HDEL', meta, 'g')
    expire_settled(key)
  end
  return #rest
end
