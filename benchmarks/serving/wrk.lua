-- Bodies from a file of fixed-size or line-separated bodies, written beforehand; the load itself only sends.
-- WRK_BODIES: file; WRK_SIZE: bytes of each body, 0 for one a line; WRK_TYPE: content type; WRK_HEADER: "Name: value";
-- WRK_NEW: a header that is new with each of 40,000 requests, "Name: value" with %s for 32 hexadecimal digits.
local requests, at = {}, 0

function init()
  local file = assert(io.open(os.getenv("WRK_BODIES"), "rb"))
  local data = file:read("*a")
  file:close()
  local headers = { ["Content-Type"] = os.getenv("WRK_TYPE") }
  local name, value = (os.getenv("WRK_HEADER") or ""):match("^([^:]+): (.*)$")
  if name then headers[name] = value end
  local size, bodies = tonumber(os.getenv("WRK_SIZE")), {}
  if size > 0 then
    for start = 1, #data, size do bodies[#bodies + 1] = data:sub(start, start + size - 1) end
  else
    for line in data:gmatch("[^\n]+") do bodies[#bodies + 1] = line end
  end
  name, value = (os.getenv("WRK_NEW") or ""):match("^([^:]+): (.*)$")
  for i = 1, name and 40000 or #bodies do
    if name then headers[name] = value:format(string.format("%032x", i * 2654435761)) end
    requests[i] = wrk.format("POST", nil, headers, bodies[(i - 1) % #bodies + 1])
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%f,"p50_us":%d,"p99_us":%d,"p999_us":%d,"not_2xx":%d,"failed":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    latency:percentile(99.9), errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
