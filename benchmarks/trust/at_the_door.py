"""R13 and R16 to R19, S4 to S8, S14, and kinds of attack beyond them: bytes that a stranger sends."""

import contextlib
import io
import json
import random
import re
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.endurance.hostile import many_chunks, too_much_said
from benchmarks.endurance.setup import Service
from benchmarks.trust.asking import Answer, answer, ask, get, post, raw, request, statuses
from benchmarks.trust.row import Bench, Measured, Row
from tests.support.bad_requests import ALL, BOMB, DEEP, SHAPES, BadRequest

JSON = {"Content-Type": "application/json"}
HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
MODEL = "/v2/models/lenet-bn/infer"


def slow_loris(bench: Bench) -> Measured:
    """R13: silent headers and half a body, two hundred of each, and honest requests beside them."""
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    body = head + b"Content-Type: application/octet-stream\r\nContent-Length: 784\r\n\r\nhalf"
    with bench.serve("--header-seconds 2 --body-seconds 3") as service, contextlib.ExitStack() as stack:
        began = time.perf_counter()
        slow = [open_with(stack, service, data) for data in (head, body) for _ in range(100)]
        honest = [post(service.port, service.bodies[0]) for _ in range(50)]
        closed = [is_closed_within(one, began + 8) for one in slow]
        seconds = time.perf_counter() - began
    worst = max(one.seconds for one in honest)
    is_kept = all(closed) and all(one.status == 200 for one in honest) and worst <= 0.5
    return Measured(
        f"{sum(closed)} of {len(closed)} closed within {seconds:.1f} s; honest {worst * 1e3:.0f} ms at most", is_kept
    )


def open_with(stack: contextlib.ExitStack, service: Service, data: bytes) -> socket.socket:
    """Open a connection, send some bytes, and leave it open."""
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10))
    connection.sendall(data)
    return connection


def is_closed_within(connection: socket.socket, until: float) -> bool:
    """Whether the service ends a connection before a moment."""
    connection.settimeout(max(0.01, until - time.perf_counter()))
    try:
        while connection.recv(65_536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def error_path(bench: Bench) -> Measured:
    """R16: gzip bombs, bodies of 100,000 chunks, and lengths beyond the limit."""
    with bench.serve() as service:
        kinds = {bomb: 413, many_chunks: 400, too_much_said: 413}
        found = [send(service.port) == status for send, status in kinds.items() for _ in range(3)]
        before = service.rss_kib()
        found += [send(service.port) == status for send, status in kinds.items() for _ in range(10)]
        grew = (service.rss_kib() - before) / 1024
    return Measured(
        f"{sum(found)} of {len(found)} refused; {grew:+.1f} MiB over the last 30", all(found) and grew <= 32
    )


def bomb(port: int) -> int:
    """100 MB in 100 kB."""
    return ask(port, "POST", MODEL, BOMB, {"Content-Encoding": "gzip"}).status


def exact_limits(bench: Bench) -> Measured:
    """R17: a body of the limit and one of a byte more, stated and in chunks."""
    most = 784 * 100
    with bench.serve(f"--max-body-bytes {most}") as service:
        found = [post(service.port, bytes(size)).status for size in (most, most + 1)]
        found += [chunked(service, size).status for size in (most, most + 1)]
    return Measured(f"N and N + 1: {found[:2]}, in chunks {found[2:]}", found == [200, 413, 200, 413])


def chunked(service: Service, size: int) -> Answer:
    """Send so many bytes as two chunks."""
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    parts = b"".join(b"%x\r\n%b\r\n" % (count, bytes(count)) for count in (size // 2, size - size // 2))
    return raw(service.port, head + parts + b"0\r\n\r\n")


def hostile_json(bench: Bench, table: Sequence[BadRequest] = ALL) -> Measured:
    """R18: every request of the tests' table that JSON can say, and liveness behind each."""
    with bench.serve("--max-rows 256") as service:
        answers = {bad.name: (send(service, bad), get(service.port, "/v2/health/live").status) for bad in table}
    passed = [
        name for name, (one, live) in answers.items() if not 400 <= one.status < 502 or one.status == 500 or live != 200
    ]
    slow = sorted((one.seconds, name) for name, (one, _) in answers.items())[-1]
    late = [name for name, (one, _) in answers.items() if one.seconds > 0.1]
    words = f"{len(answers) - len(passed)} of {len(answers)} refused; slowest {slow[0] * 1e3:.0f} ms ({slow[1]})"
    words = f"{words}, {len(late)} over 100 ms"
    return Measured(words, not passed and not late)


def send(service: Service, bad: BadRequest) -> Answer:
    """Send a bad request to the model that is served."""
    path = bad.path.replace("/fashion", "/lenet-bn")
    return ask(service.port, "POST", path, bad.body, {**JSON, **bad.headers}, timeout=3)


def fuzz(bench: Bench) -> Measured:
    """R19: raw bytes, whole requests with bytes changed, over connections of their own."""
    chance, times = random.Random(19), int(500 * bench.seconds)
    with bench.serve() as service:
        sound = [request("POST", "/predict", service.bodies[0]), request("POST", MODEL, b'{"inputs": []}', JSON)]
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda data: raw(service.port, data, ends=True), spoilt(sound, times, chance)))
        errors = len(service.events("request failed"))
    bad = [one for one in found if one.status == 500 or (one.status >= 400 and set(json.loads(one.body)) != {"error"})]
    return Measured(f"{times:,} sent: {statuses(found)}; {errors} failures in the log", not bad and not errors)


def spoilt(sound: list[bytes], times: int, chance: random.Random) -> list[bytes]:
    """Sound requests with some bytes changed, cut or repeated, and bytes that never were one."""
    made = []
    for number in range(times):
        data = bytearray(sound[number % len(sound)])
        for _ in range(chance.randint(1, 8)):
            place = chance.randrange(min(len(data), 200))
            data[place : place + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 3))
        made.append(bytes(data) if number % 5 else chance.randbytes(chance.randint(1, 300)))
    return made


def headers(bench: Bench) -> Measured:
    """S4: headers, bodies and codings beyond their limits."""
    with bench.serve() as service:
        many = ask(service.port, "GET", "/v2", b"", {f"x-{number}": "a" for number in range(400)}).status
        long = ask(service.port, "GET", "/v2", b"", {"x-long": "a" * 40_000}).status
        coded = ask(service.port, "POST", "/predict", service.bodies[0], {"Content-Encoding": "gzip"}).status
        large = too_much_said(service.port)
    found = [many, long, coded, large]
    return Measured(f"many, long, coded, too large: {found}", found == [431, 431, 415, 413])


def connections(bench: Bench) -> Measured:
    """S5: more connections of an address than it may have."""
    with bench.serve("--max-connections-per-address 40") as service, contextlib.ExitStack() as stack:
        held = [open_with(stack, service, b"") for _ in range(45 * bench.workers + 40)]
        time.sleep(0.5)
        closed = sum(is_closed_within(one, time.perf_counter() + 0.02) for one in held)
    is_kept = closed >= len(held) - 40 * bench.workers
    return Measured(f"{closed} of {len(held)} refused, 40 a worker may stay", is_kept)


def strict_json(bench: Bench) -> Measured:
    """S6: depth, NaN, infinity, and numbers that no float holds."""
    values = {"NaN": b"NaN", "Infinity": b"Infinity", "1e999": b"1e999", "5,000 deep": b"[" * 5000 + b"]" * 5000}
    with bench.serve() as service:
        found = {
            name: ask(service.port, "POST", "/predict", b'{"instances": [' + value + b"]}", JSON).status
            for name, value in values.items()
        }
        found["deep"] = ask(service.port, "POST", "/predict", b"[" * DEEP, JSON).status
        nan = b'{"x": NaN}'
        found["index"] = ask(service.port, "POST", "/v2/repository/index", nan, JSON).status
    return Measured(str(found), all(status == 400 for status in found.values()))


def short_refusals(bench: Bench) -> Measured:
    """S8: fifty thousand wrong values are refused in a sentence."""
    with bench.serve() as service:
        body = json.dumps({"instances": [["x"] * 50_000]}).encode()
        found = ask(service.port, "POST", "/predict", body, JSON)
    is_kept = (
        found.status in (400, 413)
        and len(found.body) <= 2048
        and found.seconds <= 0.1
        and b'"x", "x"' not in found.body
    )
    return Measured(f"{found.status}, {len(found.body)} bytes, {found.seconds * 1e3:.0f} ms", is_kept)


def pictures(bench: Bench) -> Measured:
    """S10: bombs, other formats, cut-off files."""
    with bench.serve() as service:
        before = service.rss_kib()
        found = [ask(service.port, "POST", "/predict", body, {"Content-Type": kind}) for body, kind in bad_pictures()]
        grew = (service.rss_kib() - before) / 1024
    worst = max(one.seconds for one in found)
    is_kept = all(one.status in (400, 413, 415) for one in found) and grew <= 40
    return Measured(f"{statuses(found)}, {worst * 1e3:.0f} ms at most, {grew:+.0f} MiB", is_kept)


def bad_pictures() -> list[tuple[bytes, str]]:
    """Files that must not be decoded, and the types that they are sent as."""
    from PIL import Image

    made = []
    for form, size in (("PNG", (13_000, 13_000)), ("JPEG", (9_000, 9_000))):
        file = io.BytesIO()
        Image.new("1" if form == "PNG" else "L", size).save(file, form)
        made.append(file.getvalue())
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "GIF")
    png, jpeg = made
    return [(png, "image/png"), (jpeg, "image/jpeg"), (file.getvalue(), "image/png"), (png[:200], "image/png"),
            (b"\x89PNG\r\n\x1a\n" + bytes(200), "image/png"), (b"%!PS-Adobe-3.0 EPSF-3.0", "image/jpeg")]  # fmt: skip


FRAMINGS = {
    "length and chunks": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "+4": b"Content-Length: +4\r\n\r\nabcd",
    "0x4": b"Content-Length: 0x4\r\n\r\nabcd",
    "chunked, identity": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "space before colon": b"Content-Length : 4\r\n\r\nabcd",
    "folded": b"X-A: 1\r\n Content-Length: 4\r\n\r\nabcd",
    "bare LF": b"X-A: 1\nContent-Length: 4\r\n\r\nabcd",
}


def smuggling(bench: Bench) -> Measured:
    """S14: framings that two parsers could read differently are refused, and the connection ends."""
    with bench.serve() as service:
        found = {name: refused_and_closed(service, HEAD + rest) for name, rest in FRAMINGS.items()}
    kept = [name for name, is_refused in found.items() if is_refused]
    return Measured(f"{len(kept)} of {len(found)} refused and closed", len(kept) == len(found))


def refused_and_closed(service: Service, data: bytes) -> bool:
    """Whether one request gets an error, and nothing behind it is answered."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=3) as connection:
        connection.sendall(data + request("GET", "/v2/health/live"))
        connection.shutdown(socket.SHUT_WR)  # a refused client may read why until it ends
        got = b""
        try:
            while piece := connection.recv(65_536):
                got += piece
        except TimeoutError:
            return False
        except OSError:
            pass
    return answer(got).status in (400, 501) and len(re.findall(rb"HTTP/1\.1 \d{3} ", got)) == 1


def string_bomb(bench: Bench) -> Measured:
    """K1: a text of 700 kB among the numbers, and five million keys; the loop has to go on."""
    bodies = {
        "text": b'{"instances": [[' + b"0," * 783 + b'"' + b"x" * 700_000 + b'"]]}',
        "keys": b'{"instances": [{' + b",".join(b'"k%d":0' % number for number in range(500_000)) + b"}]}",
    }
    with bench.serve() as service:
        before, beside, found = service.rss_kib(), [], {}
        for name, body in bodies.items():
            with ThreadPoolExecutor(1) as pool:
                sent = pool.submit(ask, service.port, "POST", "/predict", body, JSON)
                while not sent.done():
                    beside.append(get(service.port, "/v2/health/live"))
                found[name] = sent.result()
        grew = (service.rss_kib() - before) / 1024
    refused = all(one.status in (400, 413) for one in found.values())
    worst = max(one.seconds for one in beside)
    words = f"{statuses(found.values())}; liveness beside them {worst * 1e3:.0f} ms at most; {grew:+.0f} MiB"
    return Measured(words, refused and {one.status for one in beside} == {200} and worst <= 0.1 and grew <= 60)


def stalled_uploads(bench: Bench) -> Measured:
    """K5: uploads that arrive and then stand still are given up, however much came before."""
    head = HEAD + b"Content-Length: 8000000\r\n\r\n"
    with bench.serve("--body-seconds 3") as service, contextlib.ExitStack() as stack:
        began = time.perf_counter()
        held = [open_with(stack, service, head + bytes(4_000_000)) for _ in range(8)]
        honest = post(service.port, service.bodies[0])
        closed = [is_closed_within(one, began + 10) for one in held]
        seconds = time.perf_counter() - began
    words = f"{sum(closed)} of 8 given up within {seconds:.1f} s; honest request {honest.status} meanwhile"
    return Measured(words, all(closed) and honest.status == 200)


ROWS = [
    Row(
        "R13",
        "slow loris",
        "every slow connection closed in its time, honest requests unharmed",
        slow_loris,
        flags="--header-seconds 60 --body-seconds 60",
        part=4,
        is_quick=False,
    ),
    Row(
        "R16",
        "the error path is bounded",
        "each refused by its status, 413 or 400; memory <= 32 MiB",
        error_path,
        flags="--max-body-bytes 200000000 --body-seconds 1",
        part=4,
    ),
    Row(
        "R17",
        "limits are exact",
        "N is answered, N + 1 is 413, stated and in chunks",
        exact_limits,
        flags="--max-body-bytes 90000",
        part=4,
        is_quick=True,
    ),
    Row(
        "R18",
        "hostile JSON",
        "refused within 100 ms, liveness 200 after each",
        hostile_json,
        change="lenient-json",
        part=4,
    ),
    Row("R19", "fuzz", "0 x 500, every error in the one shape", fuzz, change="crashing-parser", part=4),
    Row(
        "S4",
        "headers, bodies and codings have limits",
        "431, 431, 415, 413",
        headers,
        flags="--max-header-bytes 1000000",
        part=5,
    ),
    Row(
        "S5",
        "connections of an address have a limit",
        "no more than 40 a worker stay",
        connections,
        flags="--max-connections-per-address 8000",
        part=5,
    ),
    Row("S6", "JSON is strict", "400", strict_json, change="lenient-json", part=5),
    Row(
        "S7",
        "shapes are counted before anything is allocated",
        "refused within 100 ms, liveness 200 after each",
        lambda bench: hostile_json(bench, SHAPES),
        change="credulous-shapes",
        part=5,
    ),
    Row(
        "S8",
        "refusals are short",
        "400 or 413, <= 2 KB, <= 100 ms, no echo",
        short_refusals,
        change="echoing",
        part=5,
    ),
    Row(
        "S10",
        "pictures are checked before they are decoded",
        "4xx, memory <= 40 MiB",
        pictures,
        flags="--max-image-pixels 200000000",
        part=5,
    ),
    Row("S14", "smuggling", "400 or 501, and the connection closes", smuggling, change="lenient-http", part=5),
    Row(
        "K1",
        "memory by amplification",
        "refused; liveness <= 100 ms meanwhile, memory <= 60 MiB",
        string_bomb,
        change="credulous-json",
        part=6,
    ),
    Row(
        "K5",
        "stalled uploads",
        "given up in the time of a body, others answered",
        stalled_uploads,
        flags="--body-seconds 60",
        part=6,
    ),
]
