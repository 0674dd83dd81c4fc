-- The function library "tollgate", first part: what a publication must not be. The gateways that load
-- the library state their settings in this part, because a publisher's ACL, and in a cluster the
-- publisher's slot, reach no key that could hold them.
--
-- Whatever a gateway would never deliver is refused here, where the publisher hears it.

-- The gateways of this server, by the prefix of their keys: `bytes` is limits.publication_bytes. Times are
-- Unix seconds: `seen` when one stated itself here, `lenient` until when mistakes are warnings
-- (redis.refuse_wrong), `beside` until when replicas of version 0.1 may run beside it. Without any, as in
-- a script, a gateway is the caller, and has looked itself.
local GATEWAYS = {}
-- Until then (Unix seconds) an unknown prefix is a warning: its gateway may not have been here yet.
local GRACE = 0

-- The types of the gateway's own messages: an event of such a type could not be told from one.
local RESERVED = {'connected', 'subscribed', 'unsubscribed', 'refreshed', 'pong', 'token_expiring',
  'gap', 'reconnect', 'error', 'interrupted', 'live', 'close'}
-- First parts of names that belong to the gateway.
local OWN_NAMES = {control = true, canary = true, gateway = true}
-- What a missing id becomes when programs put it into a text.
local NO_IDS = {['undefined'] = true, ['null'] = true, ['NaN'] = true}
local MAX_NAME = 255
-- White space and control characters of Unicode above ASCII, in UTF-8.
local BLANKS = {'\194[\128-\160]', '\225\154\128', '\226\128[\128-\138]', '\226\128[\168\169\175]',
  '\226\129\159', '\227\128\128'}

-- A text as an error may quote it.
local function quoted(text)
  local shown = string.gsub(string.sub(text, 1, 120), '[%c"\\]', '?')
  return '"' .. shown .. (#text > 120 and '…"' or '"')
end

local function is_utf8(text)
  if not string.find(text, '[\128-\255]') then
    return true
  end
  -- Each good character becomes a space, so that what stood around it does not grow together.
  for _, good in ipairs({'[\194-\223][\128-\191]', '\224[\160-\191][\128-\191]',
    '[\225-\236\238\239][\128-\191][\128-\191]', '\237[\128-\159][\128-\191]',
    '\240[\144-\191][\128-\191][\128-\191]', '[\241-\243][\128-\191][\128-\191][\128-\191]',
    '\244[\128-\143][\128-\191][\128-\191]'}) do
    text = string.gsub(text, good, ' ')
  end
  return not string.find(text, '[\128-\255]')
end

-- What is wrong with a channel's name, or nil.
local function wrong_name(name)
  if #name > MAX_NAME then
    return 'a channel name has at most ' .. MAX_NAME .. ' bytes, and ' .. quoted(name) .. ' has ' .. #name
  end
  if string.find(name, '[object Object]', 1, true) then
    return quoted(name) .. ' holds an object that was made into a text: name its id'
  end
  if name == '' or string.find(':' .. name .. ':', '::', 1, true) then
    return quoted(name) .. ' is empty or has an empty part: is an id missing?'
  end

  local bad = not is_utf8(name) or string.find(name, '[%z\1-\32\127%*%?%[%]{}\\"\'`<>]')
  for _, blank in ipairs(BLANKS) do
    bad = bad or string.find(name, blank)
  end
  if bad then
    return quoted(name) .. ' has a character that no channel name has (white space, * ? [ ] { } \\ " \' ` < >): encode ids'
  end

  local first = string.match(name, '^[^:]+')
  if OWN_NAMES[first] then
    return 'channels that begin with ' .. quoted(first) .. ' belong to the gateway'
  end
  for id in string.gmatch(string.sub(name, #first + 1), '[^:]+') do
    if NO_IDS[id] then
      return quoted(name) .. ' has the id ' .. quoted(id) .. ': the publisher had none'
    end
  end
  return nil
end

-- The longest prefix of a gateway that a text has at `at`, or nil.
local function prefix_at(text, at)
  local found
  for prefix in pairs(GATEWAYS) do
    if string.sub(text, at, at + #prefix - 1) == prefix and (not found or #prefix > #found) then
      found = prefix
    end
  end
  return found
end

-- What is wrong with a key that has no gateway's prefix.
local function unknown_prefix(key)
  for at = 2, math.min(#key, 200) do
    local inner = prefix_at(key, at)
    if inner and inner ~= '' then
      return 'the client library puts ' .. quoted(string.sub(key, 1, at - 1)) ..
        ' before every key (its key prefix): the key has to be ' .. quoted(string.sub(key, at))
    end
  end
  local known = {}
  for prefix in pairs(GATEWAYS) do
    known[#known + 1] = prefix
  end
  table.sort(known)
  local others = #known > 1 and ', or one of ' .. (#known - 1) .. ' other prefixes' or ''
  return 'no gateway listens to ' .. quoted(key) .. ': its key has to begin with ' .. quoted(known[1]) ..
    others .. ', as ' .. quoted(known[1] .. key)
end

-- The gateway that a key belongs to, and what is wrong with the key (or nil, and whether that is a
-- wrong prefix). A gateway's own keys, which no publisher reaches, are not looked at.
local function judge_key(key)
  local own = string.match(key, '^gateway:(.*)$')
  if not next(GATEWAYS) or own and prefix_at(own, 1) then
    return nil, nil
  end
  local prefix = prefix_at(key, 1)
  if not prefix then
    return nil, unknown_prefix(key), true
  end

  local name = string.sub(key, #prefix + 1)
  if prefix ~= '' and string.sub(name, 1, #prefix) == prefix then
    return GATEWAYS[prefix], 'the prefix ' .. quoted(prefix) .. ' stands twice in ' .. quoted(key) ..
      ': does the client library add it to every key?'
  end
  return GATEWAYS[prefix], wrong_name(name)
end

-- A decoder of our own, because its strictness is a setting that all users of `cjson` share.
local json

-- What the decoder takes and JSON does not have: a number that ends in a point, and control characters
-- within a text.
local function is_loose(text)
  local plain = string.gsub(text, '\\.', '')
  if string.find(text, '[%z\1-\31]') then
    for within in string.gmatch(plain, '"([^"]*)"') do
      if string.find(within, '[%z\1-\31]') then
        return true
      end
    end
  end
  return string.find(string.gsub(plain, '"[^"]*"', '') .. ' ', '%d%.[^%d]')
end

-- What an event must not be, or nil.
local function wrong_event(text)
  if not json then
    json = cjson.new()
    json.decode_invalid_numbers(false)
  end
  if not is_utf8(text) then
    return 'the event is not UTF-8'
  end

  local ok, event = pcall(json.decode, text)
  -- JSON allows half of a surrogate pair, and the decoder does not.
  if not ok and string.find(event, 'unicode escape', 1, true) then
    local paired = string.gsub(string.gsub(text, '\\\\', '  '), '\\u%x%x%x%x', ' ')
    ok, event = pcall(json.decode, paired)
  end
  if not ok then
    -- Too deep for the decoder, but not for the gateway.
    if string.find(event, 'too many nested', 1, true) or string.find(event, 'Found too many', 1, true) then
      return nil
    end
    if string.find(text, '[object Object]', 1, true) then
      return 'the event is "[object Object]": it was not made into JSON'
    end
    return 'the event is no JSON: ' .. event
  end

  if (string.find(text, '%d%.[^%d]') or string.find(text, '%.$') or string.find(text, '[%z\1-\31]')) and is_loose(text) then
    return 'the event is no JSON: a number ends in a point, or a text has a control character'
  end
  if type(event) == 'table' then
    for _, reserved in ipairs(RESERVED) do
      if event.type == reserved then
        return 'the type "' .. reserved .. '" is reserved for the gateway: give the event another'
      end
    end
  end
  return nil
end

-- Judges a publication's key and text. Answers an error, or a warning in the second place, or nothing;
-- the third is the gateway.
local function judge(key, text, raw)
  local gateway, wrong, is_prefix = judge_key(key)
  local limit = gateway and gateway.bytes or 536870912
  if #text > limit then
    return 'the event has ' .. #text .. ' bytes, the gateway takes ' .. limit .. ' (limits.publication_bytes)'
  end

  wrong = wrong or not raw and wrong_event(text) or nil
  if not wrong then
    return nil, nil, gateway
  end
  local now = tonumber(redis.call('TIME')[1])
  local refuses = not gateway or gateway.lenient <= now
  if is_prefix then
    refuses = GRACE <= now
    for _, other in pairs(GATEWAYS) do
      refuses = refuses and other.lenient <= now
    end
  end
  -- Earlier versions refused these already.
  if refuses or string.find(wrong, 'reserved for the gateway', 1, true) then
    return wrong
  end
  redis.log(redis.LOG_WARNING, 'tollgate_publish: ' .. wrong)
  return nil, wrong, gateway
end
