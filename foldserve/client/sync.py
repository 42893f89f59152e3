"""The client for ordinary code."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from foldserve.format.tensors import Array
from foldserve.key_file import checked_key

from .calls import Calls, Flow, InferOptions, Pause, PredictOptions
from .messages import Result
from .predict_request import Source


class Client:
    """Asks one server; keeps its connections until it is closed, and may be shared by threads.

    Args:
        url: of the server, such as "http://127.0.0.1:8000".
        api_key: sent as a bearer token with every call; ValueError where it could not stand in a header.
        deadline: seconds within which an answer is of use, where a call does not say; None waits.
        retries: further attempts after one that the server put off or that broke.
        transport: another way to reach the server, for httpx.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        deadline: float | None = 30.0,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {checked_key(api_key, 'api_key')}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, transport=transport)
        self._calls = Calls(deadline, retries)

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> Result:
        """Ask a model.

        Args:
            model: its name.
            inputs: each input by name, with the batch as its first axis; types are the model's own, nothing is cast.
            **options: see `InferOptions`.

        Raises:
            Refused: the server said no, with its sentence.
            Unavailable: it stayed too busy, or not ready.
            DeadlineExceeded: the time was over.
            Unreachable: there was no server, or the connection broke.
        """
        result: Result = self._run(self._calls.infer(model, inputs, options))
        return result

    def predict(self, source: Source, **options: Unpack[PredictOptions]) -> Any:
        """Ask about pictures, arrays or rows, in the form of the model's task.

        Args:
            source: a picture (a path, or the bytes of a PNG or JPEG file), a row (columns or inputs by name), an array
                of the model's own type, with or without a batch, or a list of pictures or of rows.
            **options: see `PredictOptions`.

        Returns:
            What the service says of it, as its documentation has it: for a classifier `class_id`, `label`, `confidence`
            and `probabilities`, or with `top` the best classes. A list of these for several pictures or rows.

        Raises:
            Refused, Unavailable, DeadlineExceeded, Unreachable: as `infer` does.
            OSError: a file cannot be read.
            ValueError, TypeError: the source is none of the above, or does not fit the model.
        """
        return self._run(self._calls.predict(source, options))

    def metadata(self, model: str) -> dict[str, Any]:
        """Return what the server says of a model; raises as `infer` does."""
        metadata: dict[str, Any] = self._run(self._calls.metadata(model))
        return metadata

    def is_ready(self) -> bool:
        """Return whether the server's models answer; never raises for a server that is not there."""
        return bool(self._run(self._calls.is_ready()))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, flow: Flow) -> Any:
        """Carry out the steps of a call; returns what it ends with."""
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    answer = self._http.request(
                        step.method, step.path, content=step.body, headers=step.headers, timeout=step.timeout
                    )
                except httpx.TransportError as err:
                    step = flow.throw(err)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            return end.value
