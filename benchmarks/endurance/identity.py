"""R3 and R4: nobody gets another's answer, and nobody's answer depends on the company.

A model whose answer is its question is asked by many at once, in random sizes, on the infer route and over HTTP. Then
the published model answers every test image of Fashion-MNIST alone, and again in random sizes beside many others.
"""

import asyncio
import itertools
import json
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import uvloop

from benchmarks.endurance.setup import Found, get
from benchmarks.serving.servers import OCTETS, Form, Peer, Running, newest_model, start
from foldserve.service.tensors import TensorSpec
from foldserve.training.dataset import load
from tests.support import artifacts

CONNECTIONS = 64
ECHO_ROW_BYTES = 4 * 8
PIXELS = 28 * 28
MANY_ROWS = 400  # more than the largest batch holds
SEED = 11
INFER = "Inference-Header-Content-Length"

Asked = Iterator[tuple[int, bytes]]  # where its rows begin, and they themselves
Check = Callable[[int, bytes, bytes], bool]  # (where, question, answer) -> whether it is the right one


def measure(models: Path, requests: int) -> Found:
    """Ask the echo so many times, and the published model for every test image twice.

    Args:
        models: folder with the published model.
        requests: to the echo.
    """
    recipe = (
        f"{CONNECTIONS} connections, two workers; {requests:,} requests of 1 to 8 random rows, one in fifty of up to "
        f"{MANY_ROWS}, for a model that gives them back; 10,000 test images alone, then in random sizes of 1 to 40"
    )
    found = Found("R3, R4", recipe)
    with tempfile.TemporaryDirectory() as folder:
        artifacts.publish_echo(Path(folder))
        with started(Path(folder), "echo", bytes(ECHO_ROW_BYTES)) as running:
            wrong, rows = uvloop.run(ask(running.port, "echo", ECHO_ROW_BYTES, random_rows(requests), is_echoed))
    found.add("requests that got another's rows", "0", f"{wrong} of {requests:,} ({rows:,} rows)", wrong == 0)
    images = load(download=False).test_images.reshape(-1, PIXELS)
    name = newest_model(models).parent.parent.name
    with started(models, name, images[0].tobytes()) as running:
        alone: dict[int, bytes] = {}
        uvloop.run(ask(running.port, name, PIXELS, one_by_one(images), keeps(alone), connections=1))
        same = is_same(alone, outputs_of(running.port, name))
        wrong, rows = uvloop.run(ask(running.port, name, PIXELS, in_company(images), same))
    measured = f"{wrong} requests of those for {rows:,} rows"
    found.add("images whose answer differs from the one that they got alone", "0", measured, wrong == 0)
    found.details |= {"images_alone": len(alone), "rows_in_company": rows}
    return found


@contextmanager
def started(models: Path, name: str, probe: bytes) -> Iterator[Running]:
    """Serve a folder with two workers."""
    form = Form(f"/v2/models/{name}/infer", OCTETS, "binary", f"{INFER}: 0")
    command = "{python} -m foldserve serve --port {port} --models-dir {models} --workers {workers} --provider cpu"
    peer = Peer("identity", command, {"binary": form}, env={"FOLDSERVE_LOG_LEVEL": "warning"})
    with (
        tempfile.TemporaryDirectory() as folder,
        start(peer, 2, models.resolve(), models, probe, Path(folder) / "log") as running,
    ):
        yield running


def outputs_of(port: int, name: str) -> list[slice]:
    """Return where each output of a row lies in an answer that holds one row."""
    stated = json.loads(get(port, f"/v2/models/{name}"))["outputs"]
    sizes = [TensorSpec(item["name"], item["datatype"], (None, *item["shape"][1:])).row_bytes for item in stated]
    return [slice(stop - size, stop) for size, stop in zip(sizes, itertools.accumulate(sizes), strict=True)]


def random_rows(requests: int) -> Asked:
    """Questions for the echo; each row is random, so that no two are alike."""
    chance = random.Random(SEED)
    for _ in range(requests):
        rows = chance.randint(1, MANY_ROWS) if chance.random() < 0.02 else chance.randint(1, 8)
        yield 0, chance.randbytes(rows * ECHO_ROW_BYTES)


def one_by_one(images: npt.NDArray[np.uint8]) -> Asked:
    """Each image alone."""
    for place, image in enumerate(images):
        yield place, image.tobytes()


def in_company(images: npt.NDArray[np.uint8]) -> Asked:
    """All images in order, cut at random; four times, each time elsewhere."""
    chance = random.Random(SEED)
    for _ in range(4):
        place = 0
        while place < len(images):
            rows = min(chance.randint(1, 40), len(images) - place)
            yield place, images[place : place + rows].tobytes()
            place += rows


def is_echoed(_place: int, question: bytes, answer: bytes) -> bool:
    """Whether the answer is the question."""
    return answer == question


def keeps(alone: dict[int, bytes]) -> Check:
    """Keep every answer."""

    def keep(place: int, _question: bytes, answer: bytes) -> bool:
        alone[place] = answer
        return True

    return keep


def is_same(alone: dict[int, bytes], outputs: list[slice]) -> Check:
    """Whether an answer holds, output after output, what its rows got alone."""

    def same(place: int, question: bytes, answer: bytes) -> bool:
        rows = [alone[row] for row in range(place, place + len(question) // PIXELS)]
        return answer == b"".join(row[output] for output in outputs for row in rows)

    return same


async def read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return the status of an answer, and its tensors without the JSON before them."""
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in lines if line)
    body = await reader.readexactly(int(headers[b"content-length"]))
    return int(status.split()[1]), body[int(headers.get(INFER.lower().encode(), b"0")) :]


async def ask(
    port: int, name: str, row_bytes: int, asked: Asked, check: Check, connections: int = CONNECTIONS
) -> tuple[int, int]:
    """Ask everything over some connections at once; return how many answers were wrong, and the rows of all."""
    head = f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {OCTETS}\r\n{INFER}: 0\r\n"
    wrong = rows = 0

    async def caller() -> None:
        nonlocal wrong, rows
        async with connected(port) as (reader, writer):
            for place, question in asked:
                writer.write(f"{head}Content-Length: {len(question)}\r\n\r\n".encode() + question)
                status, answer = await read(reader)
                wrong += status != 200 or not check(place, question, answer)
                rows += len(question) // row_bytes

    await asyncio.gather(*(caller() for _ in range(connections)))
    return wrong, rows


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Hold a connection open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
