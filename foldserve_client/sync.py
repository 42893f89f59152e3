"""The client for ordinary code; `aio` is the same for a coroutine."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from foldserve_client.errors import Unavailable, Unreachable
from foldserve_client.messages import HEADER_LENGTH, Array, Result, infer_path, read_answer, read_refusal, write_request
from foldserve_client.patience import Patience


class Client:
    """Asks one server; keeps its connections until it is closed, and may be shared by threads.

    Args:
        url: of the server, such as "http://127.0.0.1:8000".
        api_key: sent as a bearer token with every call.
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
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, transport=transport)
        self._deadline = deadline
        self._retries = retries

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        outputs: Sequence[str] | None = None,
        version: int | str | None = None,
        label: str | None = None,
        deadline: float | None = None,
        request_id: str = "",
    ) -> Result:
        """Ask a model.

        Args:
            model: its name.
            inputs: each input by name, with the batch as its first axis; types are the model's own, nothing is cast.
            outputs: the names that are wanted; None means all.
            version: which version; neither this nor a label means the latest.
            label: which label.
            deadline: seconds within which the answer is of use.
            request_id: comes back with the answer.

        Raises:
            Refused: the server said no, with its sentence.
            Unavailable: it stayed too busy, or not ready.
            DeadlineExceeded: the time was over.
            Unreachable: there was no server, or the connection broke.
        """
        body, length = write_request(inputs, outputs, request_id)
        headers = {HEADER_LENGTH: length, "Content-Type": "application/octet-stream"}
        answer = self._call("POST", infer_path(model, version, label), deadline, body, headers)
        return read_answer(answer.content, answer.headers.get(HEADER_LENGTH))

    def metadata(self, model: str) -> dict[str, Any]:
        """Return what the server says of a model; raises as `infer` does."""
        metadata: dict[str, Any] = self._call("GET", f"/v2/models/{quote(model, safe='')}", None).json()
        return metadata

    def is_ready(self) -> bool:
        """Return whether the server answers and its models do; never raises for one that does not."""
        try:
            return self._http.get("/v2/health/ready").is_success
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self,
        method: str,
        path: str,
        deadline: float | None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Return the answer of status 200, after as many attempts as there is patience for."""
        patience = Patience(self._deadline if deadline is None else deadline, self._retries)
        while True:
            sent = {**(headers or {}), **patience.headers()}
            try:
                answer = self._http.request(method, path, content=body, headers=sent, timeout=patience.left())
            except httpx.TimeoutException as err:
                patience.left()
                pause = patience.pause(Unreachable(f"no answer from {self._http.base_url}: {err!r}"))
            except httpx.TransportError as err:
                pause = patience.pause(Unreachable(f"no answer from {self._http.base_url}: {err!r}"))
            else:
                if answer.is_success:
                    return answer
                refusal = read_refusal(answer.status_code, answer.content)
                if not isinstance(refusal, Unavailable):
                    raise refusal
                pause = patience.pause(refusal, answer.headers)
            time.sleep(pause)
