-- Callbacks for wrk, each with a request id and a removal that no other has.
-- Arguments: openim or tencent, the secret of the path, the pairs in a packet, a word for this run.
--
-- A packet is of one account that removes many, as Tencent sends it. Its other pairs are one of 64
-- lists made at the start: to make them anew each time would take wrk more of the processor than some
-- servers take to read them.

local kind, secret, count, run, number, lists, headers

local function account()
  return string.format("user%06d", math.random(0, 999999))
end

local function pair(owner, target)
  return '{"From_Account":"' .. owner .. '","To_Account":"' .. target .. '"}'
end

function init(args)
  kind, secret, count, run = args[1], args[2], tonumber(args[3]), args[4]
  number, lists = 0, {}
  math.randomseed(tonumber(run, 16))
  for n = 1, 64 do
    local owner, pairs = account(), { "" }
    for _ = 2, count do pairs[#pairs + 1] = pair(owner, account()) end
    lists[n] = table.concat(pairs, ",")
  end
  headers = { ["Content-Type"] = "application/json" }
end

function request()
  number = number + 1
  local unique = run .. "-" .. number
  local path, body
  if kind == "openim" then
    path = "/imcallback/openim/" .. secret .. "/callbackAfterRemoveBlackCommand"
    headers["operationID"] = unique
    body = '{"callbackCommand":"callbackAfterRemoveBlackCommand","ownerUserID":"' .. account()
      .. '","blackUserID":"' .. unique .. '"}'
  else
    path = "/imcallback/tencent/" .. secret .. "?SdkAppid=1400000000"
      .. "&CallbackCommand=Sns.CallbackFriendDelete&contenttype=json&ClientIP=203.0.113.7"
      .. "&OptPlatform=iOS&RequestId=" .. unique
    body = '{"CallbackCommand":"Sns.CallbackFriendDelete","PairList":[' .. pair(account(), unique)
      .. lists[math.random(#lists)] .. "]}"
  end
  return wrk.format("POST", path, headers, body)
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout
  ))
end
