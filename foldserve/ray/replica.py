"""One replica of Ray Serve: the application, its connections, its health and how busy it is.

Ray makes the object, asks it for the application and starts the lifespan; uvicorn is Ray's too, and chooses the class
of its connections by itself, which is where the service's own comes in. Nothing is batched a second time.
"""

import asyncio
import logging.config
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import numpy as np
    from fastapi import FastAPI

    from foldserve.service.settings import Settings
    from foldserve.service.tensors import Array, TensorSpec

BUSY = "busy"


class Replica:
    """One process of a deployment; Ray calls its methods.

    Args:
        settings: of the service.
        cores: that Ray has set aside for it.
    """

    def __init__(self, settings: "Settings", cores: float = 1) -> None:
        from foldserve.service.logs import log_config
        from foldserve.service.memory_limit import available_memory, fit_to_memory
        from foldserve.service.processes.starvation import CpuStarvation
        from foldserve.service.transport.descriptors import fit_to_descriptors

        logging.config.dictConfig(log_config(settings.log_level, human=False, file=settings.log_file))
        self._settings = fit_to_memory(fit_to_descriptors(settings), available_memory())
        self._cores = max(1.0, cores)
        self._measured = time.monotonic(), time.process_time()
        self._starvation = CpuStarvation(os.getpid())
        self._app: FastAPI | None = None

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Return the application; Ray starts its lifespan next, and then a server."""
        from foldserve.service.factory import build_app

        self._app = build_app(self._settings, None)
        self._app.add_middleware(_Lifespan, started=_connect_by_lane)
        return self._app

    async def check_health(self) -> None:
        """Let Ray see whether the models give their golden answers.

        Raises:
            NotReady: they do not; Ray replaces this replica.
        """
        self._parts.registry.check_wanted()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return how busy the process was since the last call, as a part of its cores; waiting for a core counts too.

        Ray counts requests that pass through its own code, which those on the lane do not.
        """
        (then, used), self._measured = self._measured, (time.monotonic(), time.process_time())
        seconds = max(self._measured[0] - then, 1e-3)
        return {BUSY: (self._measured[1] - used + self._starvation.seconds()) / (seconds * self._cores)}

    async def infer(
        self,
        model: str | None,
        inputs: "Mapping[str, np.ndarray[Any, Any]]",
        *,
        version: int | None = None,
        label: str | None = None,
        timeout_seconds: float | None = None,
    ) -> "dict[str, np.ndarray[Any, Any]]":
        """Answer a call by a handle, as the infer route answers a request.

        Args:
            model: its name; None where there is only one.
            inputs: each input by name, (N, ...), in the datatype that the model states.
            version: other than the latest.
            label: other than `latest`.
            timeout_seconds: within which it is answered or refused; None: the default of the settings.

        Returns:
            Each output by name, N rows.

        Raises:
            ServiceError: the inputs are not what the model takes, or there is no such model, or it is overloaded.
        """
        from foldserve.service.inference import answer, count, served_model
        from foldserve.service.request_context import RequestContext

        context = RequestContext.read((), self._settings.default_timeout_seconds)
        registry = self._parts.registry
        served = served_model(registry, model, None if version is None else str(version), label)
        with served.in_use():
            checked = _checked(inputs, served.engine.inputs, self._settings.max_rows)
            result = await answer(registry, served, checked, context.deadline(timeout_seconds), context)
        count(served, result, context)
        return dict(result.outputs)

    @property
    def _parts(self) -> Any:
        assert self._app is not None, "Ray has the application made before it calls anything else"
        return self._app.state


class _Lifespan:
    """ASGI wrapper that tells of the state which a lifespan fills."""

    def __init__(self, app: Any, started: Callable[[dict[str, Any]], None]) -> None:
        self._app, self._started = app, started

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            self._started(scope["state"])
        await self._app(scope, receive, send)


def _connect_by_lane(state: dict[str, Any]) -> None:
    """Let uvicorn take the service's connections where a server leaves the choice to it, as Ray's does.

    Args:
        state: what the lifespan leaves for connections; Ray's server, which has no lifespan, does not pass it on.
    """
    from uvicorn.protocols.http import auto

    from foldserve.service.lane.connection import lane_connection

    loop, usual = asyncio.get_running_loop(), cast(Any, auto.AutoHTTPProtocol)

    def connection(config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> Any:
        if asyncio.get_running_loop() is not loop:  # the batchers belong to the loop of the lifespan
            return usual(config=config, server_state=server_state, app_state=app_state, _loop=_loop)
        return lane_connection(config, server_state, state, _loop)

    auto.AutoHTTPProtocol = connection  # type: ignore[assignment]


def _checked(inputs: "Mapping[str, Array]", specs: "Sequence[TensorSpec]", max_rows: int) -> "dict[str, Array]":
    """Return the inputs of a call, which are those of the model.

    Raises:
        InvalidInput: they are not.
        TooManyRows: more than `max_rows`.
    """
    import numpy as np

    from foldserve.format.tensors import DATATYPE_OF
    from foldserve.service.errors import InvalidInput
    from foldserve.service.tensors import BYTES
    from foldserve.service.v2.checks import DeclaredTensor, check_inputs

    arrays = {
        name: np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array) for name, array in inputs.items()
    }
    declared = []
    for name, array in arrays.items():
        if array.dtype == object and not all(isinstance(element, bytes) for element in array.ravel()):
            raise InvalidInput(f"input {name!r}: objects, expected bytes in an array of objects")
        datatype = BYTES if array.dtype == object else DATATYPE_OF.get(array.dtype, str(array.dtype))
        declared.append(DeclaredTensor(name, datatype, array.shape))
    check_inputs(declared, specs, max_rows)
    return arrays
