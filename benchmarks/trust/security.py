"""S1 to S25, apart from those of `at_the_door`: keys, names, logs, pages, dependencies."""

import ast
import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import ROOT
from benchmarks.endurance.setup import Service, read
from benchmarks.trust.asking import ask, get, post, raw, request
from benchmarks.trust.operating import admin, by_tests, start
from benchmarks.trust.row import Bench, Measured, Row
from foldserve.service.keys import new_key

LOAD = "/v2/repository/models/lenet-bn/load"
ADMIN_CALLS = [
    ("POST", f"/v2/repository/models/lenet-bn/{call}") for call in ("load", "unload", "promote", "rollback", "shadow")
]
ADMIN_CALLS += [("DELETE", "/v2/repository/models/lenet-bn/shadow")]


def keys_file(folder: str, *scopes: str, name: str = "trust") -> tuple[str, dict[str, str]]:
    """Add a key to the keys file of a folder; return the flag and the header."""
    key, line = new_key(name, list(scopes))
    with (Path(folder) / "keys").open("a") as file:
        file.write(f"{line}\n")
    return f"--keys-file {folder}/keys --closed-scopes read,metrics", {"Authorization": f"Bearer {key}"}


def admin_scopes(bench: Bench) -> Measured:
    """S1: no admin key, a wrong one, and one for inference."""
    with bench.serve() as service:
        off = {ask(service.port, method, path).status for method, path in ADMIN_CALLS}
    with tempfile.TemporaryDirectory() as name:
        keys_file(name, "admin", name="boss")
        flags, infer = keys_file(name, "infer", name="client")
        with bench.serve(flags) as service:
            wrong = {ask(service.port, *call, b"", {"X-API-Key": "fs_wrong"}).status for call in ADMIN_CALLS}
            lacking = {ask(service.port, *call, b"", infer).status for call in ADMIN_CALLS}
    return Measured(
        f"without {off}, wrong {wrong}, of another scope {lacking}", (off, wrong, lacking) == ({404}, {401}, {403})
    )


def path_tricks(bench: Bench) -> Measured:
    """S3: other ways to write the path of an admin call."""
    tricks = [
        f"/{LOAD}", LOAD.replace("/v2", "/./v2"), LOAD.replace("/v2", "/x/../v2"), f"{LOAD}/", f"{LOAD}?a=1",
        LOAD.replace("repository", "%72epository"), f"http://127.0.0.1{LOAD}", LOAD.upper(),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        flags, _ = keys_file(name, "admin")
        with bench.serve(flags) as service:
            found = [ask(service.port, "POST", path).status for path in tricks]
            found += [
                ask(service.port, method, LOAD).status for method in ("PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
            ]
            found.append(ask(service.port, "POST", LOAD, b"", {"X-HTTP-Method-Override": "GET"}).status)
            hosts = [raw(service.port, request("POST", LOAD, b"", {"Host": host})).status for host in ("a/b", "a?b")]
    passed = [status for status in found + hosts if status not in (400, 401, 404, 405)]
    return Measured(f"{len(found + hosts)} ways, {len(passed)} let through", not passed)


def quiet_failures(bench: Bench) -> Measured:
    """S9: a failure of the service tells its request id and nothing else."""
    with bench.serve(change="failing") as service:
        path = "/predict?model=lenet-bn"
        found = post(service.port, bytes([9]) * 784, path, {"X-Request-ID": "trust-9"})
    told = re.findall(rb"/secret|Traceback|onnxruntime|1\.31|RuntimeError", found.body)
    return Measured(
        f"{found.status}: {found.body[:120].decode()}", found.status == 500 and b"trust-9" in found.body and not told
    )


def names(bench: Bench) -> Measured:
    """S13: names of models that are no names."""
    bad = [
        "..%2f..%2fetc",
        "%00",
        "lenet-bn%00",
        "%E2%80%AElenet",
        "x" * 5000,
        "lenet-bn%2f..%2flenet-bn",
        "CON",
        "%2e%2e",
    ]
    with bench.serve() as service:
        found = [
            get(service.port, f"/v2/models/{name}{tail}").status
            for name in bad
            for tail in ("", "/config", "/versions/1")
        ]
    odd = [status for status in found if status not in (400, 404)]
    return Measured(f"{len(found)} asked, {len(odd)} neither 400 nor 404", not odd)


def log_lines(bench: Bench) -> Measured:
    """S15: line ends, escapes and quotes in paths, headers and names."""
    evil = ["/%0a%7b%22event%22:%22forged%22%7d", "/%1b[31m", '/"},{"event":"forged', "/v2/models/%0d%0aforged"]
    with bench.serve("--log-level debug") as service:
        for path in evil:
            get(service.port, path)
            get(service.port, path, {"X-Request-ID": 'a"}\t{"event":"forged', "User-Agent": '"'})
            get(service.port, path, {"X-Request-ID": "a\x1b[31mforged", "User-Agent": "\x1b[2J"})
        time.sleep(0.3)
        lines = (service.folder / "log").read_text(errors="replace").splitlines()
    bad = [line for line in lines if not is_event(line)]
    return Measured(f"{len(lines)} lines, {len(bad)} not one event as JSON", not bad)


def is_event(line: str) -> bool:
    """Whether a line of the log is one event, and not a forged one."""
    try:
        event = json.loads(line)
    except ValueError:
        return False
    return isinstance(event, dict) and event.get("event") != "forged"


def series(bench: Bench) -> Measured:
    """S16: random paths and names make no series."""
    with bench.serve() as service:
        ask_strangely(service, 20)
        time.sleep(1.0)
        get(service.port, "/metrics")  # its own series are there from now on
        before = get(service.port, "/metrics").body.count(b"\n")
        ask_strangely(service, 500)
        time.sleep(1.0)
        grew = get(service.port, "/metrics").body.count(b"\n") - before
    return Measured(f"{grew:+d} lines after 1,000 paths", grew <= 0)


def ask_strangely(service: Service, times: int) -> None:
    """Ask for paths, models and methods that are not there."""
    for number in range(times):
        method = ("GET", "POST", "PURGE", "LOCK", "PUT")[number % 5]
        ask(service.port, method, f"/random-{times}-{number}")
        ask(service.port, method, f"/v2/models/random-{times}-{number}")


def page(bench: Bench) -> Measured:
    """S17: the page's policy, and no other host in it."""
    with bench.serve() as service:
        found = get(service.port, "/docs")
        api = get(service.port, "/v2", {"Origin": "http://evil.example"})
    policy = found.headers.get("content-security-policy", "")
    hosts = re.findall(rb'(?:src|href)="https?:', found.body)
    ok = "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "script-src" not in policy
    ok = ok and found.headers.get("x-content-type-options") == "nosniff" and not hosts
    return Measured(policy[:60] or "no policy", ok and "access-control-allow-origin" not in api.headers)


def secrets(bench: Bench) -> Measured:
    """S20: a key shows nowhere."""
    with tempfile.TemporaryDirectory() as name:
        flags, key = admin(Path(name))
        secret = key["Authorization"].split()[1].encode()
        with bench.serve(flags) as service:
            for path in ("/v2", "/metrics", "/nothing", "/v2/models/none", "/v2/repository/models/lenet-bn"):
                get(service.port, path, key)
            ask(service.port, "POST", LOAD, b"{", key)
            pages = [get(service.port, path, key).body for path in ("/metrics", "/v2", "/openapi.json")]
            lines = [read(f"/proc/{pid}/cmdline") + read(f"/proc/{pid}/environ") for pid in service.running.processes()]
            log = (service.folder / "log").read_bytes()
    shown = sum(secret in text for text in [*pages, *lines, log])
    return Measured(f"shown in {shown} of {len(pages) + len(lines) + 1} places", not shown)


def rates(bench: Bench) -> Measured:
    """S22: a key that asks too often is refused, another is not."""
    with tempfile.TemporaryDirectory() as name:
        keys_file(name, "infer", "metrics", name="other")
        flags, busy = keys_file(name, "infer", "metrics", "read", name="busy")
        with bench.serve(f"{flags} --closed-scopes metrics --key-rate 5", lives=False) as service:
            found = [get(service.port, "/metrics", busy).status for _ in range(60)]
    return Measured(
        f"{found.count(200)} x 200, {found.count(429)} x 429", found.count(429) >= 30 and found.count(200) >= 5
    )


def proxies(bench: Bench) -> Measured:
    """S23: an address that a stranger writes into a header is not believed: the log has the one it came from."""
    with tempfile.TemporaryDirectory() as name:
        flags, _ = keys_file(name, "admin")
        with bench.serve(flags) as service:
            ask(service.port, "POST", LOAD, b"", {"X-API-Key": "fs_wrong", "X-Forwarded-For": "203.0.113.9"})
            time.sleep(0.3)
            log = (service.folder / "log").read_text()
    return Measured("believed" if "203.0.113.9" in log else "not believed", "203.0.113.9" not in log)


def timing(bench: Bench) -> Measured:
    """S24: a key that is nearly right takes as long as one that is not."""
    with tempfile.TemporaryDirectory() as name:
        flags, key = keys_file(name, "admin")
        right = key["Authorization"].split()[1]
        near = right[:-1] + ("x" if right[-1] != "x" else "y")
        with bench.serve(flags, environment={"BENCH_KEY": right}) as service:
            times: dict[str, list[float]] = {near: [], "q" * len(near): []}
            for _ in range(200):
                for given, spent in times.items():
                    spent.append(ask(service.port, "POST", LOAD, b"", {"X-API-Key": given}).seconds)
    first, second = (sorted(spent)[100] * 1e3 for spent in times.values())
    return Measured(f"medians {first:.2f} and {second:.2f} ms", abs(first - second) <= 0.25 * max(first, second))


OLD = {
    "onnxruntime": "1.27.0",
    "uvicorn": "0.50.0",
    "starlette": "1.0.0",
    "pillow": "12.2.0",
    "python_multipart": "0.0.30",
}


def old_packages(bench: Bench) -> Measured:
    """S25: each of some packages is older than the service was tested with, as its folder in site-packages says."""
    found = []
    for name, version in OLD.items():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / f"{name}-{version}.dist-info").mkdir()
            path = {"PYTHONPATH": f"{folder}:{ROOT}", "BENCH_CHANGE": bench.change}
            flags = ("--models-dir", str(bench.models), "--workers", str(bench.workers))
            code, _, said = start(*flags, env=path, module="benchmarks.trust.weakened", patience=15)
            found.append(code == 2 and f"{name.replace('_', '-')} {version}" in said)
        if not found[-1]:
            break  # one is enough, and each takes as long as patience lasts
    return Measured(f"{sum(found)} of {len(OLD)} refused by name", all(found))


FORBIDDEN = {"pickle", "marshal", "shelve", "torch", "yaml", "eval", "exec", "os.system", "os.popen"}


def runs_nothing(bench: Bench) -> Measured:
    """S12: no module of the service imports or calls what runs what it reads; the control adds one that does."""
    sources = {str(path): path.read_text() for path in (ROOT / "service").rglob("*.py")}
    if bench.change:
        sources["unsafe"] = "import pickle\npickle.loads(b'')"
    found = {name: bad for name, text in sources.items() if (bad := FORBIDDEN & set(names_in(text)))}
    return Measured(f"{len(sources)} modules, {found or 'none of them does'}", not found)


def names_in(text: str) -> Iterator[str]:
    """Modules that a source imports, and functions that it calls by these names."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def supply_chain(bench: Bench) -> Measured:
    """S21: what goes into the images, by the tests, and what they are made on."""
    found = by_tests("tests/deploy/test_image_locks.py")(bench)
    bases = re.findall(r"^(?:ARG BASE=|FROM )(\S*:\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    tagged = [base for base in bases if "@sha256:" not in base]
    words = (
        f"{found.figure}; {f'the base image {tagged[0]} is named by its tag' if tagged else 'base images by digest'}"
    )
    return Measured(words, found.is_kept and not tagged, found.is_broken)


ONE = (1,)
ROWS = [
    Row(
        "S1",
        "admin calls need an admin key",
        "404 without any, 401 with a wrong one, 403 with another scope",
        admin_scopes,
        change="open-access",
        part=10,
        is_quick=True,
    ),
    Row(
        "S2",
        "every route has a scope",
        "the inventory of the tests is complete",
        by_tests("tests/service/test_access.py", "-k", "every_route or each_door"),
        change="open-access",
        workers=ONE,
        part=10,
    ),
    Row(
        "S3",
        "no way round access",
        "the same verdict for every way to write it",
        path_tricks,
        change="open-access",
        part=10,
    ),
    Row("S9", "failures tell nothing", "500 with the request id alone", quiet_failures, change="talkative", part=10),
    Row(
        "S11",
        "artifacts are checked",
        "refused",
        by_tests("tests/service/artifacts/test_bad_versions.py"),
        change="unproved",
        workers=ONE,
        part=10,
    ),
    Row(
        "S12",
        "nothing in the service runs what it reads",
        "no pickle, torch, eval, shell",
        runs_nothing,
        change="unsafe",
        workers=ONE,
        part=10,
    ),
    Row("S13", "names never touch paths", "400 or 404", names, change="any-name", part=10),
    Row("S15", "log injection", "each line one event as JSON", log_lines, change="plain-log", part=11),
    Row("S16", "no series from clients", "none", series, change="path-labels", part=11),
    Row(
        "S17",
        "the page loads nothing from elsewhere",
        "its policy, no other host, no CORS",
        page,
        change="bare-docs",
        part=11,
    ),
    Row(
        "S18",
        "no telemetry",
        "no connection of its own",
        by_tests("tests/test_telemetry.py"),
        own_control="in the test: a process that does call home is seen",
        workers=ONE,
        part=11,
    ),
    Row(
        "S19",
        "the container",
        "unprivileged, read-only, no capabilities (on a Docker engine)",
        by_tests("-m", "container", "tests/test_container.py"),
        change="as-root",
        workers=ONE,
        part=13,
    ),
    Row(
        "S20",
        "secrets show nowhere",
        "in no log, metric, page, command line",
        secrets,
        change="telling-log",
        part=11,
    ),
    Row(
        "S21",
        "the supply chain",
        "packages of images by digest, base images by digest",
        supply_chain,
        change="any-wheel",
        workers=ONE,
        part=11,
        why_not="only the registry knows the digest of the base image, and none could be asked where this was written"
        "; `--build-arg BASE=python@sha256:...` names it",
    ),
    Row("S22", "a rate for each key", "429 above it", rates, flags="--key-rate 100000", part=11),
    Row(
        "S23",
        "no stranger's word on addresses",
        "X-Forwarded-For is not believed",
        proxies,
        flags="--trusted-proxies 127.0.0.1",
        part=11,
    ),
    Row(
        "S24",
        "the time of a refusal says nothing",
        "medians within a quarter",
        timing,
        change="early-compare",
        part=11,
    ),
    Row(
        "S25",
        "dependencies have a floor at start",
        "a start with older ones is refused in a sentence that names them",
        old_packages,
        change="any-package",
        part=11,
    ),
]
