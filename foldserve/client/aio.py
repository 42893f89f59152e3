"""The client for coroutines; what its calls do and raise stands with `sync.Client`."""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from foldserve.format.tensors import Array
from foldserve.key_file import checked_key

from .calls import Calls, Flow, InferOptions, Pause, PredictOptions
from .messages import Result
from .predict_request import Source


class AsyncClient:
    """`Client`, awaited; may be shared by the tasks of one event loop."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        deadline: float | None = 30.0,
        retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {checked_key(api_key, 'api_key')}"} if api_key else {}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, transport=transport)
        self._calls = Calls(deadline, retries)

    async def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> Result:
        """Ask a model."""
        result: Result = await self._run(self._calls.infer(model, inputs, options))
        return result

    async def predict(self, source: Source, **options: Unpack[PredictOptions]) -> Any:
        """Ask about pictures, arrays or rows."""
        return await self._run(self._calls.predict(source, options))

    async def metadata(self, model: str) -> dict[str, Any]:
        """Return what the server says of a model."""
        metadata: dict[str, Any] = await self._run(self._calls.metadata(model))
        return metadata

    async def is_ready(self) -> bool:
        """Return whether the server's models answer."""
        return bool(await self._run(self._calls.is_ready()))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, flow: Flow) -> Any:
        """Carry out the steps of a call; returns what it ends with."""
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    answer = await self._http.request(
                        step.method, step.path, content=step.body, headers=step.headers, timeout=step.timeout
                    )
                except httpx.TransportError as err:
                    step = flow.throw(err)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            return end.value
