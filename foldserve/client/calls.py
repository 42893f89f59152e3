"""What a call does, as a generator of steps: send this, wait so long. Both clients only carry the steps out.

So the retries, the deadline and the reading of answers exist once, and nothing here knows whether it is awaited.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict
from urllib.parse import quote

import httpx
import numpy as np

from foldserve.format.tensors import Array

from .errors import Unavailable, Unreachable
from .messages import (
    HEADER_LENGTH,
    Result,
    infer_path,
    read_answer,
    read_predictions,
    read_refusal,
    write_request,
)
from .predict_request import Source, body_of, body_of_array, predict_path
from .retry_budget import RetryBudget


@dataclass(frozen=True)
class Send:
    """A request to make; `timeout` in seconds, None for none."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None


@dataclass(frozen=True)
class Pause:
    """A time to wait, in seconds."""

    seconds: float


Step = Send | Pause
# The answer to a `Send` goes in, and `httpx.TransportError` is thrown in; nothing goes in after a `Pause`.
Flow = Generator[Step, httpx.Response | None, Any]


class InferOptions(TypedDict, total=False):
    """What an inference may say besides its inputs.

    `outputs`: the names that are wanted, all where none are given. `version`, `label`: who answers, the latest where
    neither is given. `deadline`: seconds within which the answer is of use. `request_id`: comes back with the answer.
    """

    outputs: Sequence[str] | None
    version: int | str | None
    label: str | None
    deadline: float | None
    request_id: str


class PredictOptions(TypedDict, total=False):
    """What a call of `/predict` may say besides pictures or rows.

    `model`: needed where several are served. `version`, `label`: who answers, the latest where neither is given.
    `top`: so many classes, the most probable first. `deadline`: seconds within which the answer is of use.
    """

    model: str | None
    version: int | str | None
    label: str | None
    top: int | None
    deadline: float | None


class Calls:
    """The calls of one client.

    Args:
        deadline: seconds, where a call does not say; None waits.
        retries: further attempts after one that the server put off or that broke.
    """

    def __init__(self, deadline: float | None, retries: int) -> None:
        self._deadline = deadline
        self._retries = retries

    def infer(self, model: str, inputs: Mapping[str, Array], options: InferOptions) -> Flow:
        """Ask a model; gives a `Result`."""
        body, length = write_request(inputs, options.get("outputs"), options.get("request_id", ""))
        headers = {HEADER_LENGTH: length, "Content-Type": "application/octet-stream"}
        path = infer_path(model, options.get("version"), options.get("label"))
        answer = yield from self._call(Send("POST", path, body, headers), options.get("deadline"))
        result: Result = read_answer(answer.content, answer.headers.get(HEADER_LENGTH))
        return result

    def predict(self, source: Source, options: PredictOptions) -> Flow:
        """Ask about pictures or rows; gives a prediction, or a list of them."""
        model = options.get("model")
        if isinstance(source, np.ndarray):
            served = yield from self.metadata(model if model is not None else (yield from self._only_model()))
            body = body_of_array(source, served["inputs"])
        else:
            body = body_of(source)
        path = predict_path(model, options.get("version"), options.get("label"), options.get("top"))
        send = Send("POST", path, body.content, {"Content-Type": body.content_type})
        answer = yield from self._call(send, options.get("deadline"))
        predictions = read_predictions(answer.content)
        return predictions[0] if body.is_one else predictions

    def _only_model(self) -> Flow:
        answer = yield from self._call(Send("GET", "/v2"), None)
        names = [model["name"] for model in answer.json()["models"]]
        if len(names) != 1:
            raise ValueError(f"the server has the models {names}, expected one: name it with model=")
        return names[0]

    def metadata(self, model: str) -> Flow:
        """Ask what a model takes and gives."""
        answer = yield from self._call(Send("GET", f"/v2/models/{quote(model, safe='')}"), None)
        return answer.json()

    def is_ready(self) -> Flow:
        """Ask whether the server's models answer; a server that is not there does not."""
        try:
            answer = yield Send("GET", "/v2/health/ready", timeout=self._deadline)
        except httpx.TransportError:
            return False
        return answer is not None and answer.is_success

    def _call(self, send: Send, deadline: float | None) -> Flow:
        """Give the answer of status 200, after as many attempts as the retry budget holds."""
        budget = RetryBudget(self._deadline if deadline is None else deadline, self._retries)
        while True:
            headers = {**send.headers, **budget.headers()}
            try:
                answer = yield Send(send.method, send.path, send.body, headers, budget.left())
            except httpx.TransportError as err:
                budget.left()  # a timeout at the deadline is the deadline
                yield Pause(budget.pause(Unreachable(f"no answer from the server: {err!r}")))
                continue
            assert answer is not None
            if answer.is_success:
                return answer
            refusal = read_refusal(answer.status_code, answer.content)
            if not isinstance(refusal, Unavailable):
                raise refusal
            yield Pause(budget.pause(refusal, answer.headers))
