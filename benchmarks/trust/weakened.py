"""The service with one of its guards taken out, so that the control of a promise has something to find.

    BENCH_CHANGE=open-access python -m benchmarks.trust.weakened --port 8000 --models-dir models

The same module, as a plugin of pytest (`-p benchmarks.trust.weakened`), takes the guard out under a test. What
`benchmarks.endurance.service` changes can be named here too. Workers read this file again when they start.
"""

import asyncio
import itertools
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmarks.endurance.service  # noqa: F401 - makes its own changes

CHANGES: dict[str, Callable[[], None]] = {}


def change(take_out: Callable[[], None]) -> Callable[[], None]:
    """Give a change the name of its function."""
    CHANGES[take_out.__name__.replace("_", "-")] = take_out
    return take_out


def put(owner: Any, **parts: Any) -> None:
    """Put other parts in the place of an owner's."""
    for name, part in parts.items():
        setattr(owner, name, part)


@change
def patient_decoding() -> None:
    """Every picture is taken in, however many wait."""
    from foldserve.service.bodies.work_queue import WorkQueue

    put(WorkQueue, _admit=lambda *_: None)


@change
def wide_pixels() -> None:
    """Colours are worked out for a whole picture at a time."""
    from foldserve.pictures import colours

    put(colours, _strips=lambda image: iter([(0, 0, *image.size)]))


@change
def credulous_messages() -> None:
    """A message of gRPC may have as many fields as it likes, and as much around its tensors."""
    from foldserve.service.v2.rpc import wire

    put(wire, AROUND_BYTES=10**9, MAX_FIELDS=10**9)


@change
def slow_listings() -> None:
    """A listing looks at the disk on the event loop, and a disk takes a tenth of a second."""
    from foldserve.service.live.disk_scan import DiskScan

    async def look(self: Any) -> Any:
        time.sleep(0.1)  # noqa: ASYNC251 - that is what is wrong with it
        return self._look()

    put(DiskScan, look=look)


@change
def wall_clock() -> None:
    """Deadlines by a clock that can be set."""
    put(time, perf_counter=time.time, monotonic=time.time)


@change
def sluggish() -> None:
    """A worker needs ten seconds before it loads anything."""
    from foldserve.service.processes.workers import Workers

    plain = Workers.join

    def join(self: Any, *given: Any) -> Any:
        time.sleep(10)
        return plain(self, *given)

    put(Workers, join=join)


@change
def no_admission() -> None:
    """Everything is taken in, and nothing is thrown out while it waits."""
    from foldserve.service.batching.batcher import Batcher
    from foldserve.service.batching.queue import Queue

    put(Batcher, _admit=lambda *_: None)
    put(Queue, expire=lambda *_: None)


@change
def noisy() -> None:
    """Answers depend on how many rows share a batch, once the golden answers were given."""

    def spoil(run: Any, self: Any, inputs: Any) -> Any:
        more = len(next(iter(inputs.values()))) // 8
        outputs = run(self, inputs).items()
        return {name: array + array.dtype.type(more) if array.dtype.kind == "f" else array for name, array in outputs}

    _once_ready(spoil)


@change
def lying_once_ready() -> None:
    """One batch in thirty is answered for other pixels, but not those that are asked alone first."""
    number = itertools.count(-60)

    def spoil(run: Any, self: Any, inputs: Any) -> Any:
        at = next(number)
        is_lie = at >= 0 and at % 30 == 0
        return run(self, {name: 255 - array for name, array in inputs.items()} if is_lie else inputs)

    _once_ready(spoil)


def _once_ready(spoil: Callable[[Any, Any, Any], Any]) -> None:
    """Run batches through `spoil` from the moment on at which the service says that it is ready."""
    from foldserve.service import app
    from foldserve.service.engines.runners import PlainRunner

    plain, plain_info, ready = PlainRunner.run, app.logger.info, []

    def info(event: str, *given: Any, **named: Any) -> None:
        if event == "ready":
            ready.append(True)
        plain_info(event, *given, **named)

    def run(self: Any, inputs: Any) -> Any:
        return spoil(plain, self, inputs) if ready else plain(self, inputs)

    put(app.logger, info=info)
    put(PlainRunner, run=run)


def _on_marker(value: int, then: Callable[[], None]) -> None:
    from foldserve.service.engines.runners import PlainRunner

    plain = PlainRunner.run

    def run(self: Any, inputs: Any) -> Any:
        first = next(iter(inputs.values()))
        if any((row == value).all() for row in first.reshape(len(first), -1)):
            then()
        return plain(self, inputs)

    put(PlainRunner, run=run)


def _fail() -> None:
    raise RuntimeError("/secret/path/model.onnx: node Conv_7 failed in libonnxruntime.so.1.31.1")


@change
def hanging() -> None:
    """A batch with an image of sevens never ends."""
    _on_marker(7, lambda: time.sleep(600))


@change
def failing() -> None:
    """A batch with an image of nines fails, and says where."""
    _on_marker(9, _fail)


@change
def contagious() -> None:
    """A request that was refused spoils the next batch."""
    from foldserve.service.engines.runners import PlainRunner
    from foldserve.service.errors import InvalidInput

    spoilt, plain, plain_error = [], PlainRunner.run, InvalidInput.__init__

    def refused(self: Any, *given: Any) -> None:
        spoilt.append(True)
        plain_error(self, *given)

    def run(self: Any, inputs: Any) -> Any:
        if spoilt:
            spoilt.clear()
            _fail()
        return plain(self, inputs)

    put(InvalidInput, __init__=refused)
    put(PlainRunner, run=run)


@change
def cold() -> None:
    """The first run after ready takes a second."""
    seen: list[bool] = []

    def spoil(run: Any, self: Any, inputs: Any) -> Any:
        if not seen:
            seen.append(True)
            time.sleep(1.0)
        return run(self, inputs)

    _once_ready(spoil)


@change
def mislabelled() -> None:
    """Every answer says that version 1 gave it."""
    from foldserve.service.live.model import Model

    put(Model, headers=property(lambda _: ((b"x-model-version", b"1"),)))
    put(Model, header_lines=property(lambda _: b"x-model-version: 1\r\n"))


@change
def unheeding() -> None:
    """Nobody notices that a client has gone while it waits."""
    from foldserve.service.batching.request import Request

    put(Request, cancel=lambda _: None)


@change
def uncounted() -> None:
    """Answers are not counted."""
    from foldserve.service.metrics import Metrics

    put(Metrics, observe_requests=lambda *_: None)
    put(Metrics, observe_request=lambda *_: None)


@change
def any_wheel() -> None:
    """The lists of what goes into images have no digests."""
    plain = Path.read_text

    def read_text(self: Path, *given: Any, **named: Any) -> str:
        return plain(self, *given, **named).replace("--hash=sha256:", "# ")

    put(Path, read_text=read_text)


@change
def any_package() -> None:
    """Packages may be as old as they like."""
    from foldserve.service import floors

    floors.FLOORS.clear()


@change
def any_descriptors() -> None:
    """As many connections are taken as the settings say, whatever the system allows."""
    from foldserve.service.transport import descriptors

    descriptors.allowed_connections = lambda limit: 10**6


@change
def orphans() -> None:
    """Workers go on without their supervisor."""
    from foldserve.service.processes.workers import Workers

    put(Workers, _end_with=lambda *_: None)


@change
def open_access() -> None:
    """No key is ever asked for."""
    from foldserve.service.access import Access

    put(Access, check=lambda *_, **__: None)


@change
def lenient_json() -> None:
    """JSON is read as Python reads it, whatever it weighs."""
    import orjson

    from foldserve.service.bodies.json_body import SizeGuard

    put(orjson, loads=json.loads)
    put(SizeGuard, check=lambda *_: None)


@change
def credulous_json() -> None:
    """A body of /predict becomes one array as it is, whatever stands in it and however much."""
    import numpy as np

    from foldserve.service.bodies import instances
    from foldserve.service.errors import InvalidInput
    from foldserve.service.lane import predict

    def read(body: bytes, *_: Any) -> bytes:
        pixels = np.array(json.loads(body)["instances"])
        if pixels.dtype.kind not in "iuf":
            raise InvalidInput("instances: expected numbers")
        return pixels.astype(np.uint8).tobytes()

    for module in (instances, predict):
        module.pixels_from_json = read


@change
def echoing() -> None:
    """Refusals repeat at length what they got."""
    from foldserve.service import error_answers

    error_answers.error_json = lambda message: json.dumps({"error": message * 100}).encode()


@change
def talkative() -> None:
    """Failures of the service are told in full."""
    from foldserve.service import error_answers

    plain = error_answers.error_answer

    def told(error: Exception, request_id: str) -> Any:
        answer = plain(error, request_id)
        cause = error.__cause__ or error
        return error_answers.ErrorAnswer(answer.status, answer.grpc_status, f"{cause!r}", answer.headers)

    error_answers.error_answer = told


@change
def path_labels() -> None:
    """Metrics have the path of a request as a label."""
    from foldserve.service.request_middleware import RequestMiddleware

    def record(self: Any, scope: Any, method: str, status: int, context: Any) -> None:
        self.metrics.observe_request(scope["path"], method, status, 0.0)

    put(RequestMiddleware, _record=record)


@change
def bare_docs() -> None:
    """The page has no policy."""
    from foldserve.service import routes

    routes.DOCS_HEADERS.clear()


@change
def telling_log() -> None:
    """Keys are logged, and paths are printed as they are."""
    from foldserve.service import access_middleware

    plain = access_middleware.check_http

    def told(access: Any, scope: Any) -> Any:
        logging.getLogger("foldserve").warning("asked %s", dict(scope["headers"]).get(b"authorization"))
        print(scope["path"], file=sys.stderr)
        return plain(access, scope)

    access_middleware.check_http = told


@change
def plain_log() -> None:
    """Lines of the log are put together as text, with whatever stands in their fields."""
    from foldserve.service import logs

    def line(self: Any, record: logging.LogRecord) -> str:
        fields = {"level": record.levelname.lower(), "event": record.getMessage(), **logs._fields(record)}
        return "{" + ", ".join(f'"{name}": "{value}"' for name, value in fields.items()) + "}"

    put(logs.JsonFormatter, format=line)


@change
def lenient_http() -> None:
    """What two parsers could read differently is read somehow, as the library can be told to."""
    from foldserve.service.transport.parser import RequestParser

    plain = RequestParser.__init__
    ways = ("headers", "chunked_length", "transfer_encoding", "optional_lf_after_cr", "optional_cr_before_lf")

    def init(self: Any, *given: Any) -> None:
        plain(self, *given)
        self._parser.set_dangerous_leniencies(**{f"lenient_{way}": True for way in ways})

    put(RequestParser, __init__=init)


@change
def early_compare() -> None:
    """A key is kept as it is and compared until it differs, a tenth of a millisecond for each letter that is right."""
    from foldserve.service import access

    plain, key = access._find, os.environ["BENCH_KEY"]

    def find(keys: Any, given: str) -> Any:
        right = next((at for at, pair in enumerate(zip(key, given, strict=False)) if len(set(pair)) > 1), len(key))
        time.sleep(right * 1e-4)
        return plain(keys, given)

    access._find = find


@change
def unproved() -> None:
    """A version may hold any operation and lead to any file."""
    from foldserve.service.artifacts import repository

    put(repository, refuse_operators=lambda *_, **__: None, refuse_external_data=lambda *_, **__: None)


@change
def slow_loads() -> None:
    """A call that loads takes eleven seconds."""
    from foldserve.service.live.control import ModelControl

    _delay(ModelControl, "load", 11.0)


@change
def slow_moves() -> None:
    """A pointer moves after a second."""
    from foldserve.service.live.control import ModelControl

    _delay(ModelControl, "_move", 1.0)


def _delay(owner: Any, name: str, seconds: float) -> None:
    plain = getattr(owner, name)

    async def late(*given: Any, **named: Any) -> Any:
        await asyncio.sleep(seconds)
        return await plain(*given, **named)

    setattr(owner, name, late)


@change
def forgetful_state() -> None:
    """Nothing is remembered once the state folder is gone."""
    from foldserve.service.live import state_dir
    from foldserve.service.live.state import ModelState

    put(state_dir.StateDir, of=lambda self, name: ModelState())
    put(state_dir.StateDir, read=lambda self: {})


@change
def failing_log() -> None:
    """A line that cannot be written ends what wrote it."""
    from foldserve.service.logs import LogFile

    put(LogFile, handleError=lambda *_: os._exit(1))


@change
def hasty_publish() -> None:
    """A version is written where it will be read, file by file."""
    from foldserve.training import artifact

    def publish(target: Any, files: Any, companions: Any) -> None:
        target.mkdir()
        for name, content in files.items():
            (target / name).write_bytes(content)
        for name, text in companions.items():
            (target.parent / name).write_text(text)

    put(artifact, _publish_as=publish)
    _change_programs_of_tests()


def _change_programs_of_tests() -> None:
    """Make the change in a program too that a test runs with `python -c`."""
    plain = subprocess.run

    def run(command: Any, *given: Any, **named: Any) -> Any:
        if "-c" in command:
            place = command.index("-c") + 1
            first = "import benchmarks.trust.weakened\n"
            command = [*command[:place], first + command[place], *command[place + 1 :]]
        return plain(command, *given, **named)

    put(subprocess, run=run)


@change
def forgetful_checkpoint() -> None:
    """What a checkpoint says of the optimizer is not read."""
    from foldserve.training import fit

    plain = fit._restore

    def restore(model: Any, optimizer: Any, snapshot: Any) -> None:
        plain(model, optimizer, snapshot)
        optimizer.state.clear()

    put(fit, _restore=restore)


@change
def any_name() -> None:
    """Whatever a model is called, the one that is served answers."""
    from foldserve.service.live.registry import Registry

    plain = Registry.get

    def get(self: Any, name: str | None = None, *given: Any) -> Any:
        return plain(self, name if name in self.tables else None, *given)

    put(Registry, get=get)


@change
def credulous_shapes() -> None:
    """A shape is believed."""
    from foldserve.service.v2 import checks

    put(checks, _check_shape=lambda *_: None)


@change
def crashing_parser() -> None:
    """What is no HTTP ends in an error that nobody expected."""
    from foldserve.service import errors

    def refuse(*_: Any) -> None:
        raise KeyError("parser")

    put(errors.InvalidInput, __init__=refuse)


def apply(names: str) -> None:
    """Make the changes that are ours; those of `endurance.service` it has made itself."""
    for name in filter(None, names.split(",")):
        if name in CHANGES:
            CHANGES[name]()


apply(os.environ.get("BENCH_CHANGE", ""))

if __name__ == "__main__":
    from foldserve.command import main

    sys.exit(main(["serve", *sys.argv[1:]]))
