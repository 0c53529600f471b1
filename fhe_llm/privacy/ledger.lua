-- Every step of a ledger on Redis; each call of this script is one atomic step.
--
-- Redis does not undo a script that fails half way, so every check comes before the first write, and the first write is
-- the one that Redis may refuse (no memory, a replica, an identifier out of order). Amounts are at most 2^53 - 1
-- and two are compared before they are added, so that Lua's doubles hold all of them exactly.
local meta, history, principals, budgets, counters, charges, entries = unpack(KEYS)
local ask = cjson.decode(ARGV[1])
local MAX = 9007199254740991
local last  -- how many entries the history has

local function whole(number)
    return string.format('%.0f', number)
end

local function damaged(what)
    error({damaged = what})
end

local function integer(text, what)
    local number = #text <= 16 and string.match(text, '^%d+$') and tonumber(text)
    if not number or number > MAX then
        damaged(what)
    end
    return number
end

-- Where every key has as many fields as were written, none was evicted, expired, deleted or added by somebody else.
local function sizes()
    local lengths = {
        redis.call('LLEN', entries),
        redis.call('HLEN', budgets),
        redis.call('HLEN', counters),
        redis.call('HLEN', charges),
    }
    return table.concat(lengths, ' ')
end

local function check_ours()
    local format, identity, count = unpack(redis.call('HMGET', meta, 'format', 'identity', 'entries'))
    if not format or identity ~= ask.identity then
        return {'replaced'}
    end
    if format ~= ask.format then
        return {'format', format}
    end
    last = integer(count or '', 'the number of entries')
    if last < ask.seen then
        return {'lost', whole(ask.seen - last)}
    end
    if redis.call('XLEN', history) ~= last then
        damaged('entries of the history')
    end
    if ask.principal ~= '' and sizes() ~= (redis.call('HGET', principals, ask.principal) or '0 0 0 0') then
        damaged('keys of a principal')
    end
end

local function now()
    if ask.now then
        return ask.now
    end
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function window_start(length, time)
    return length == 0 and 0 or time - time % length
end

-- The first write of every step that has one. `change` is JSON of what it did to what is spent.
local function append(action, time, change, event, budget)
    local sequence = whole(last + 1)
    redis.call(
        'XADD', history, sequence .. '-0', 'time', whole(time), 'principal', ask.principal, 'kind', ask.kind,
        'action', action, 'key', ask.key, 'change', change, 'event', event, 'budget', budget
    )
    redis.call('HSET', meta, 'entries', sequence)
    redis.call('RPUSH', entries, sequence)
    last = last + 1
end

-- The last write of every step that has one.
local function finish()
    redis.call('HSET', principals, ask.principal, sizes())
end

-- For each window: the counter's start, spent and pending.
local function read_counters(unit)
    local found = {}
    for _, window in ipairs(ask.windows) do
        local text = redis.call('HGET', counters, unit .. ' ' .. window[1])
        local start, spent, pending = string.match(text or '0 0 0', '^(%d+) (%d+) (%d+)$')
        if not start then
            damaged('a counter')
        end
        local counter = {
            start = integer(start, 'a counter'),
            spent = integer(spent, 'a counter'),
            pending = integer(pending, 'a counter'),
        }
        if counter.pending > counter.spent then
            damaged('a counter')
        end
        found[window[1]] = counter
    end
    return found
end

local function write_counters(unit, found)
    for window, counter in pairs(found) do
        local text = whole(counter.start) .. ' ' .. whole(counter.spent) .. ' ' .. whole(counter.pending)
        redis.call('HSET', counters, unit .. ' ' .. window, text)
    end
end

-- Opens the windows that `time` lies in: where the clock went back, the latest ones that were ever charged.
local function open_windows(found, time)
    time = math.max(time, found.hour.start)
    for _, window in ipairs(ask.windows) do
        local start = window_start(window[2], time)
        if start > found[window[1]].start then
            found[window[1]] = {start = start, spent = 0, pending = 0}
        end
    end
    return time
end

local function fits(unit, amount, found)
    local capped = false
    for _, window in ipairs(ask.windows) do
        local limit = redis.call('HGET', budgets, unit .. ' ' .. window[1])
        if limit then
            capped = true
            if amount > integer(limit, 'a budget') - found[window[1]].spent then
                return false
            end
        end
    end
    return (capped or ask.uncapped) and amount <= MAX - found.lifetime.spent
end

local function read_charge(text)
    local state, time, call, taken, event = string.match(text, '^(%l+) (%d+) (%x+) (%S+) (.*)$')
    if not state then
        damaged('a charge')
    end
    local charge = {state = state, time = time, call = call, taken = taken, event = event, units = {}}
    local again = {}
    for unit, amount, when in string.gmatch(taken, '"([%l-]+)":%[(%d+),(%d+)%]') do
        again[#again + 1] = '"' .. unit .. '":[' .. amount .. ',' .. when .. ']'
        local counted = {unit = unit, amount = integer(amount, 'a charge'), time = integer(when, 'a charge')}
        charge.units[#charge.units + 1] = counted
    end
    if '{' .. table.concat(again, ',') .. '}' ~= taken then
        damaged('a charge')
    end
    return charge
end

local function write_charge(state, time, call, taken, event)
    redis.call('HSET', charges, ask.key, table.concat({state, time, call, taken, event}, ' '))
end

local steps = {}

function steps.budget()
    local place = ask.unit .. ' ' .. ask.window
    if redis.call('HGET', budgets, place) ~= whole(ask.limit) then
        append('budget', now(), '{}', '', ask.budget)
        redis.call('HSET', budgets, place, whole(ask.limit))
        finish()
    end
    return {'done'}
end

function steps.take()
    local known = redis.call('HGET', charges, ask.key)
    if known then
        local first = read_charge(known)
        local same, ours = first.event == ask.event, first.call == ask.call
        return {'known', first.state, first.time, first.taken, same and '1' or '0', ours and '1' or '0'}
    end
    local time = now()
    local found, taken, change = {}, {}, {}
    for index, charge in ipairs(ask.charge) do
        local unit, amount = unpack(charge)
        found[unit] = read_counters(unit)
        local when = open_windows(found[unit], time)
        if not fits(unit, amount, found[unit]) then
            return {'refused', whole(time), redis.call('HGETALL', budgets), redis.call('HGETALL', counters)}
        end
        for _, counter in pairs(found[unit]) do
            counter.spent = counter.spent + amount
            counter.pending = counter.pending + (ask.state == 'reserved' and amount or 0)
        end
        taken[index] = '"' .. unit .. '":[' .. whole(amount) .. ',' .. whole(when) .. ']'
        change[index] = '"' .. unit .. '":' .. whole(amount)
    end
    local action = ask.state == 'reserved' and 'reserve' or 'charge'
    append(action, time, '{' .. table.concat(change, ',') .. '}', ask.event, '')
    for unit, windows in pairs(found) do
        write_counters(unit, windows)
    end
    write_charge(ask.state, whole(time), ask.call, '{' .. table.concat(taken, ',') .. '}', ask.event)
    finish()
    return {'taken', whole(time)}
end

-- Ends a reservation: nothing of it is pending any more, and what it did not cost is given back, in the windows it was
-- taken in.
function steps.settle()
    local known = redis.call('HGET', charges, ask.key)
    local charge = known and read_charge(known)
    if not charge or charge.event ~= ask.reserved then
        return {'unknown'}
    end
    if charge.state == ask.state then
        return {'done'}
    end
    if charge.state ~= 'reserved' then
        return {'ended', charge.state}
    end
    local actual = {}
    for _, cost in ipairs(ask.charge) do
        actual[cost[1]] = cost[2]
    end
    local found, change, settled = {}, {}, 0
    for _, taken in ipairs(charge.units) do
        local cost = actual[taken.unit] or 0
        if cost > taken.amount then
            return {'more', charge.taken}
        end
        settled = settled + (actual[taken.unit] and 1 or 0)
        if cost < taken.amount then
            change[#change + 1] = '"' .. taken.unit .. '":-' .. whole(taken.amount - cost)
        end
        found[taken.unit] = read_counters(taken.unit)
        for _, window in ipairs(ask.windows) do
            local counter = found[taken.unit][window[1]]
            if counter.start == window_start(window[2], taken.time) then
                counter.spent = counter.spent - (taken.amount - cost)
                counter.pending = counter.pending - taken.amount
                if counter.pending < 0 or counter.spent < counter.pending then
                    damaged('a counter')
                end
            end
        end
    end
    if settled < #ask.charge then
        return {'more', charge.taken}
    end
    append(ask.action, now(), '{' .. table.concat(change, ',') .. '}', ask.event, '')
    for unit, windows in pairs(found) do
        write_counters(unit, windows)
    end
    write_charge(ask.state, charge.time, charge.call, charge.taken, charge.event)
    finish()
    return {'done'}
end

function steps.read()
    return {'read', whole(now()), redis.call('HGETALL', budgets), redis.call('HGETALL', counters)}
end

function steps.principals()
    local names = redis.call('HKEYS', principals)
    if #names == 0 and last > 0 then
        damaged('the list of principals')
    end
    return {'principals', names}
end

function steps.count()
    return {'count', ask.principal == '' and whole(last) or whole(redis.call('LLEN', entries))}
end

-- The entries from place `first` to place `last`, counted from 1: of all, or of one principal.
function steps.page()
    local first, final = whole(ask.first), whole(ask.last)
    if ask.principal == '' then
        return {'page', redis.call('XRANGE', history, first .. '-0', final .. '-0')}
    end
    local found = {}
    for _, sequence in ipairs(redis.call('LRANGE', entries, whole(ask.first - 1), whole(ask.last - 1))) do
        found[#found + 1] = redis.call('XRANGE', history, sequence .. '-0', sequence .. '-0')[1]
    end
    return {'page', found}
end

-- Begins a ledger where there is none: where there is nothing at all.
local function open()
    local identity = redis.call('HGET', meta, 'identity')
    if not identity then
        if redis.call('EXISTS', meta, history, principals) > 0 then
            damaged('its first key')
        end
        identity = ask.identity
        redis.call('HSET', meta, 'format', ask.format, 'identity', identity, 'entries', '0')
    end
    ask.identity = identity
    return check_ours() or {'open', identity}
end

local function step()
    if ask.step == 'open' then
        return open()
    end
    return check_ours() or steps[ask.step]()
end

local fine, answer = pcall(step)
if not fine then
    if type(answer) ~= 'table' or not answer.damaged then
        error(answer, 0)
    end
    answer = {'damaged', answer.damaged}
end
answer[#answer + 1] = last and whole(last) or '0'
return answer
