-- The function library "tollgate", first part: which texts a gateway delivers as events. Redis has a
-- decoder, which is looser here and stricter there than the gateway's.
--
-- Redis does nothing else meanwhile, and publishers choose the texts: every look at one is a run over it
-- in C, and never a loop over its characters, but for texts that nobody sends.

-- The types of the gateway's own messages: an event of such a type could not be told from one.
local RESERVED = {connected = true, subscribed = true, unsubscribed = true, refreshed = true, pong = true,
  token_expiring = true, gap = true, reconnect = true, error = true, interrupted = true, live = true, close = true}

-- The characters beyond ASCII in UTF-8, each form by its first byte.
local CHARACTERS = {'[\194-\223][\128-\191]', '\224[\160-\191][\128-\191]', '[\225-\236\238\239][\128-\191][\128-\191]',
  '\237[\128-\159][\128-\191]', '\240[\144-\191][\128-\191][\128-\191]', '[\241-\243][\128-\191][\128-\191][\128-\191]',
  '\244[\128-\143][\128-\191][\128-\191]'}

-- A pattern that looks at each place of a long text is several times slower than a run from its beginning:
-- hence the runs here and below, and finds of plain texts.
local function is_ascii(text)
  return string.match(text, '^[\1-\127]*()') > #text
end

local function is_utf8(text)
  for _, form in ipairs(CHARACTERS) do
    if is_ascii(text) then
      return true
    end
    text = string.gsub(text, form, ' ')
  end
  return is_ascii(text)
end

-- A decoder of our own, because its strictness is a setting that all users of `cjson` share.
local decoder
local function decode(text)
  if not decoder then
    decoder = cjson.new()
    decoder.decode_invalid_numbers(false)
  end
  return pcall(decoder.decode, text)
end

-- True if a point of the text is where no number has one: behind a minus, or with a digit before it and none
-- behind it. The decoder takes such numbers. A point of a sentence may look like one.
local function has_odd_point(text)
  return string.find(text, '.', 1, true) and
    (string.find(text, '-.', 1, true) or string.find(text, '%d%.%D') or string.find(text, '%d%.$')) and true or false
end

-- What the decoder takes and JSON does not have: such numbers, and control characters within a text. Only
-- for a text that the decoder takes.
local function is_loose(text)
  local bare = text
  if string.find(bare, '\\', 1, true) then
    bare = string.gsub(bare, '\\.', '')
  end
  bare = string.gsub(bare, '"[ !#-\255]*"', '')
  return string.find(bare, '"', 1, true) or has_odd_point(bare)
end

-- True if a text that is too deep for the decoder is JSON.
local function is_deep_json(text)
  -- Each text becomes one byte, and each other value another.
  local bare = string.gsub(string.gsub(text, '\\["\\/bfnrt]', ''), '\\u%x%x%x%x', '')
  if string.find(bare, '\\', 1, true) then
    return false
  end
  bare = string.gsub(bare, '"[ !#-\255]*"', '\1')
  bare = string.gsub(bare, '%-?%d[%d%.eE%+%-]*', function(number)
    return not has_odd_point(number) and decode('[' .. number .. ']') and '\2' or '?'
  end)
  for _, word in ipairs({'true', 'false', 'null'}) do
    bare = string.gsub(bare, word, '\2')
  end
  bare = string.gsub(bare, '[ \t\r\n]+', '')

  -- What is expected at each place: a value (v), a value or the end of a list ([), a name (n), a name or
  -- the end of an object ({), a colon (:), or what follows a value (,).
  local outer, depth, expected = {}, 0, 'v'
  for token in string.gmatch(bare, '.') do
    local is_value = expected == 'v' or expected == '['
    local closes = token == ']' and outer[depth] == '[' or token == '}' and outer[depth] == '{'
    if is_value and (token == '[' or token == '{') then
      depth = depth + 1
      outer[depth], expected = token, token
    elseif is_value and (token == '\1' or token == '\2') then
      expected = ','
    elseif (expected == 'n' or expected == '{') and token == '\1' then
      expected = ':'
    elseif expected == ':' and token == ':' then
      expected = 'v'
    elseif expected == ',' and token == ',' and depth > 0 then
      expected = outer[depth] == '[' and 'v' or 'n'
    elseif closes and (expected == ',' or expected == outer[depth]) then
      depth, expected = depth - 1, ','
    else
      return false
    end
  end
  return depth == 0 and expected == ','
end

-- The reserved type of an object's own fields, also where another field of that name comes behind it, or nil.
local function reserved_twin(text)
  local bare = string.gsub(string.gsub(text, '\\\\', '??'), '\\u00(%x%x)', function(code)
    local character = string.char(tonumber(code, 16))
    return string.find(character, '[%a_]') and character or '?'
  end)
  bare = string.gsub(string.gsub(bare, '\\.', '?'), '"[^"]*"', function(inner)
    return (string.gsub(inner, '[{}%[%]]', '?'))
  end)
  local fields = string.match(bare, '^%s*{(.*)}%s*$') or ''
  fields = string.gsub(string.gsub(fields, '%b{}', ''), '%b[]', '')
  for kind in string.gmatch(fields, '"type"%s*:%s*"([%a_]*)"') do
    if RESERVED[kind] then
      return kind
    end
  end
  return nil
end

-- The reserved type of an event, or nil, and in the second place why a text is no JSON.
local function kind_of(text)
  local ok, event = decode(text)
  -- JSON allows half of a surrogate pair, and the decoder does not. What is put in its place is wrong outside
  -- of a text, as that was.
  if not ok and string.find(event, 'unicode escape', 1, true) then
    local paired = string.gsub(string.gsub(text, '\\\\', '??'), '\\u[dD][89a-fA-F]%x%x', '?')
    ok, event = decode(paired)
  end

  if not ok and string.find(event, 'too many nested', 1, true) then
    if is_deep_json(text) then
      return reserved_twin(text)
    end
    return nil, 'the event is no JSON: it is nested too deep to say where it is wrong'
  end
  if not ok and string.find(text, '[object Object]', 1, true) then
    return nil, 'the event is "[object Object]": it was not made into JSON'
  end
  if not ok then
    return nil, 'the event is no JSON: ' .. event
  end

  if type(event) ~= 'table' or event.type == nil then
    return nil
  end
  local first = string.find(text, '"type"', 1, true)
  local has_twin = first and string.find(text, '"type"', first + 1, true) or string.find(text, '\\u00', 1, true)
  return RESERVED[event.type] and event.type or has_twin and reserved_twin(text) or nil
end

-- What an event must not be, or nil.
local function wrong_event(text)
  -- One look at most texts says that neither can be.
  local is_plain = string.match(text, '^[\32-\126]*()') > #text
  if not is_plain and not is_utf8(text) then
    return 'the event is not UTF-8, or has a zero byte'
  end

  local kind, wrong = kind_of(text)
  if wrong then
    return wrong
  end
  local has_controls = not is_plain and string.match(text, '^[\32-\255]*()') <= #text
  if (has_controls or has_odd_point(text)) and is_loose(text) then
    return 'the event is no JSON: a number has a point without digits beside it, or a text has a control character'
  end
  return kind and 'the type "' .. kind .. '" is reserved for the gateway: give the event another' or nil
end
