-- A script for wrk: it sends the bodies in turn, and logs the begin, the end (CLOCK_MONOTONIC) and the status of each
-- request. Arguments: the log file, path, headers (a line each), mean pause of a connection in seconds (0: none), body
-- files.
-- Each request has the time of its begin as its X-Request-Id, which the server returns with the answer.
local ffi = require("ffi")
ffi.cdef([[
struct moment { long seconds; long nanoseconds; };
int clock_gettime(int clock, struct moment *moment);
]])
local MONOTONIC = 1
local LONGEST = 5 -- mean pauses
local moment = ffi.new("struct moment")
local path, log, pause
local bodies, headers, turn = {}, {}, 0

local function now()
  ffi.C.clock_gettime(MONOTONIC, moment)
  return tonumber(moment.seconds) + tonumber(moment.nanoseconds) / 1e9
end

function init(arguments)
  log = assert(io.open(arguments[1], "w"))
  path, pause = arguments[2], tonumber(arguments[4])
  for name, value in arguments[3]:gmatch("([^:\n]+): ([^\n]+)") do
    headers[name] = value
  end
  for number = 5, #arguments do
    local file = assert(io.open(arguments[number], "rb"))
    bodies[#bodies + 1] = file:read("*a")
    file:close()
  end
  math.randomseed(1)
  if pause == 0 then
    delay = nil -- otherwise wrk calls it before every request
  end
end

-- Exponentially distributed pauses make the requests of many connections arrive at random, one by one. The longest are
-- cut off (one of 150), since a server closes a connection that is idle for long.
function delay()
  return math.floor(1000 * pause * math.min(LONGEST, -math.log(1 - math.random())))
end

function request()
  turn = turn % #bodies + 1
  headers["X-Request-Id"] = string.format("%.6f", now())
  return wrk.format("POST", path, headers, bodies[turn])
end

function response(status, headers)
  log:write(headers["x-request-id"] or "nan", " ", string.format("%.6f", now()), " ", status, "\n")
end

function done(summary)
  local errors = summary.errors
  print(string.format('{"never_answered": %d}', errors.connect + errors.read + errors.write + errors.timeout))
end
