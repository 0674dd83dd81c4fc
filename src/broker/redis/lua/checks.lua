-- The function library "tollgate", second part: what a publication must not be. The gateways that load
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

-- First parts of names that belong to the gateway.
local OWN_NAMES = {control = true, canary = true, gateway = true}
-- What a missing id becomes when programs put it into a text.
local NO_IDS = {['undefined'] = true, ['null'] = true, ['NaN'] = true}
local MAX_NAME = 255
-- White space and control characters of Unicode above ASCII, in UTF-8.
local BLANKS = {'\194[\128-\160]', '\225\154\128', '\226\128[\128-\138]', '\226\128[\168\169\175]',
  '\226\129\159', '\227\128\128'}

-- A text as an error may quote it, which clients read as UTF-8.
local function quoted(text)
  local shown = string.gsub(string.sub(text, 1, 120), '[%c"\\]', '?')
  if #text > 120 then
    shown = string.gsub(shown, '[\192-\255][\128-\191]*$', '') .. '…'
  end
  if not is_utf8(shown) then
    shown = string.gsub(shown, '[\128-\255]', '?')
  end
  return '"' .. shown .. '"'
end

local function has_bad_character(name)
  local bad = not is_utf8(name) or string.find(name, '[%z\1-\32\127%*%?%[%]{}\\"\'`<>]')
  for _, blank in ipairs(BLANKS) do
    bad = bad or string.find(name, blank)
  end
  return bad
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

  if not string.find(name, '^[%w:_%.%-%%@]*$') and has_bad_character(name) then
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
  if #known == 1 then
    return 'no gateway listens to ' .. quoted(key) .. ': its key has to begin with ' .. quoted(known[1]) ..
      ', as ' .. quoted(known[1] .. key)
  end
  for i = 1, #known do
    known[i] = quoted(known[i])
  end
  return 'no gateway listens to ' .. quoted(key) .. ': its key has to begin with one of ' ..
    table.concat(known, ', ', 1, math.min(#known, 8))
end

-- The gateway that a key belongs to, and what is wrong with the key (or nil, and whether that is a
-- wrong prefix). A gateway's own keys, which no publisher reaches, are not looked at.
local function judge_key(key)
  local is_own = string.sub(key, 1, 8) == 'gateway:' and prefix_at(key, 9)
  if not next(GATEWAYS) or is_own then
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
