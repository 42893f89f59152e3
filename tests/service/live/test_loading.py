"""Loads that take long, or never end: nothing else waits for them, and they are given up."""

import asyncio
import logging
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foldserve.service.errors import ArtifactInvalid, InvalidInput
from foldserve.service.live.opening import Opener
from tests.support import artifacts
from tests.support.live_models import loaded
from tests.support.wire import on_loop


def endless_model() -> onnx.ModelProto:
    """int64 `identity` [batch,4] -> `echo`, after a loop of more turns than anybody has time for."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["goes_on"], ["still"]),
            helper.make_node("Add", ["carried", "one"], ["next"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.INT64, ["batch", 4]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.INT64, ["batch", 4]),
        ],
        [numpy_helper.from_array(np.array(1, np.int64), "one")],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["turns", "yes", "identity"], ["echo"], body=body)],
        "endless",
        [helper.make_tensor_value_info("identity", TensorProto.INT64, ["batch", 4])],
        [helper.make_tensor_value_info("echo", TensorProto.INT64, ["batch", 4])],
        [
            numpy_helper.from_array(np.array(2**62, np.int64), "turns"),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def publish_endless(root, name: str = "echo", version: int = 2) -> None:
    asked = np.arange(64, dtype=np.int64).reshape(16, 4)
    artifacts.publish(root, name, endless_model(), {"identity": asked}, {"echo": asked}, version=version)


async def until_loading(models, key: tuple[str, int]) -> None:
    """Wait until a load goes on, which nothing tells."""
    for _ in range(3000):
        if key in models.reconciler.loading:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{key} is not being loaded")


@on_loop
async def test_pointers_move_while_a_version_loads_that_never_ends(fashion_and_echo, tmp_path):
    """A rollback of a warm version takes no longer than its write to the disk, of this model and of another one."""
    for version in (2, 3):
        artifacts.publish_classifier(fashion_and_echo, version=version, seed=version)
    async with loaded(fashion_and_echo, state_dir=tmp_path / "state", load_seconds=300) as models:
        control, registry = models.control, models.registry
        await control.promote("fashion", 2)
        publish_endless(fashion_and_echo)
        publish_endless(fashion_and_echo, "fashion", 9)
        loads = [asyncio.create_task(control.load(*key)) for key in (("echo", 2), ("fashion", 9))]
        for key in (("echo", 2), ("fashion", 9)):
            await until_loading(models, key)
        times = []
        for expected in (3, 2):
            started = time.perf_counter()
            if expected == 3:
                await control.rollback("fashion")
            else:
                await control.promote("fashion", 2)
            times.append(time.perf_counter() - started)
            assert registry.get("fashion").version == expected
        assert min(times) < 1, times
        started = time.perf_counter()
        models.reconciler.follow("fashion")
        assert time.perf_counter() - started < 5  # both loads go on for minutes
        await control.unload("echo")
        assert "echo" not in registry.tables
        assert {row["state"] for row in await control.index() if row["version"] == "9"} == {"LOADING"}
        artifacts.publish_echo(fashion_and_echo, "other")
        await control.load("other")
        assert registry.get("other").version == 1
        for load in loads:
            load.cancel()


@on_loop
async def test_a_load_that_takes_too_long_is_given_up(fashion_and_echo):
    """Its run ends, the reason is that of any refusal, what served goes on; other files under the number are tried."""
    async with loaded(fashion_and_echo, load_seconds=1.5) as models:
        publish_endless(fashion_and_echo)
        with pytest.raises(InvalidInput, match=r"not loaded and proved within 1\.5 s and is given up"):
            await models.control.load("echo")
        assert models.value("abandoned_loads_total", model="echo") == 1
        assert models.value("refused_versions_total", model="echo") == 1
        assert models.registry.get("echo").version == 1
        assert "--load-seconds" in (await models.control.index())[1]["reason"]


def test_a_start_that_would_never_end_says_why(models):
    """The service is not silent for ever: the start fails with the reason, as for any version that cannot serve."""
    publish_endless(models, version=1)

    async def start() -> None:
        async with loaded(models, load_seconds=1):
            raise AssertionError("it started")

    with pytest.raises(ArtifactInvalid, match="model 'echo': version 1 was not loaded and proved within 1 s"):
        asyncio.run(start())


def test_an_endless_version_does_not_keep_the_older_one_from_serving(models):
    """Given up at the start as well, it is one refused version among others."""
    artifacts.publish_echo(models)
    publish_endless(models)

    async def start() -> int:
        async with loaded(models, load_seconds=1) as live:
            return live.registry.get("echo").version

    assert asyncio.run(start()) == 1


@on_loop
async def test_a_load_that_goes_on_is_told(fashion, monkeypatch, caplog):
    """Who reads the log of a service that is not ready yet learns what it waits for."""
    monkeypatch.setattr("foldserve.service.live.loading._PROGRESS_SECONDS", 0.01)
    caplog.set_level("INFO", "foldserve.service.live.loading")
    is_told, told = threading.Event(), []
    open_engine = Opener.open_engine

    def hear(record):
        if record.getMessage() == "still loading":
            told.append(record)
            is_told.set()
        return True

    def slowly(*arguments):
        assert is_told.wait(60)
        return open_engine(*arguments)

    monkeypatch.setattr(Opener, "open_engine", slowly)
    monkeypatch.setattr(logging.getLogger("foldserve.service.live.loading"), "filters", [hear])
    async with loaded(fashion):
        assert (told[0].model, told[0].version) == ("fashion", 1)
