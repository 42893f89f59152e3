"""The outbox without a connection: whole answers and streamed ones leave in the order of their requests."""

import asyncio

from foldserve.service.transport.flow import Flow
from foldserve.service.transport.outbox import Outbox
from tests.support.wire import on_loop


class Transport:
    """Keeps what is written, and whether reading is paused."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_reading = True

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True


class Request:
    """A request whose answer is due."""

    def __init__(self) -> None:
        self.answer: bytes | None = None
        self.is_started = self.is_cancelled = False

    def start(self) -> None:
        self.is_started = True

    def end_connection(self) -> None:
        raise AssertionError("not called here")

    def cancel(self) -> None:
        self.is_cancelled = True


class Sent:
    """Counts calls."""

    count = 0

    def __call__(self) -> None:
        self.count += 1


def outbox(max_waiting: int = 10) -> tuple[Outbox, Transport, Sent]:
    """An outbox, where it writes, and what it calls."""
    transport, sent = Transport(), Sent()
    return Outbox(transport, Flow(transport), max_waiting, sent), transport, sent


@on_loop
async def test_an_answer_waits_for_those_before_it() -> None:
    """Ready in any order, written in one."""
    made, transport, sent = outbox()
    first, second, third = requests = [Request() for _ in range(3)]
    assert [made.add(request) for request in requests] == [True, False, False]
    made.send(third, b"3")
    made.send(second, b"2")
    assert transport.written == []
    made.send(first, b"1")
    assert transport.written == [b"1", b"2", b"3"]
    assert not made.due
    assert sent.count == 1


@on_loop
async def test_a_request_for_the_application_starts_when_its_turn_has_come() -> None:
    """Behind answers that were ready before, and once."""
    made, transport, _ = outbox()
    lane, application, behind = requests = [Request() for _ in range(3)]
    for request in requests:
        made.add(request)
    made.send(behind, b"behind")
    made.send(lane, b"lane")
    assert application.is_started
    assert transport.written == [b"lane"]
    made.complete(application)
    assert transport.written == [b"lane", b"behind"]


@on_loop
async def test_too_many_requests_stop_the_client_until_some_are_answered() -> None:
    """Nothing is read while more wait than may."""
    made, transport, _ = outbox(max_waiting=2)
    requests = [Request() for _ in range(3)]
    for request in requests[:2]:
        made.add(request)
    assert transport.is_reading
    made.add(requests[2])
    assert not transport.is_reading
    made.send(requests[0], b"")
    assert transport.is_reading


@on_loop
async def test_a_closed_outbox_writes_nothing() -> None:
    """All that waited are told, and an answer that is finished afterwards is of no interest."""
    made, transport, sent = outbox()
    requests = [Request(), Request()]
    for request in requests:
        made.add(request)
    made.close()
    assert all(request.is_cancelled for request in requests)
    made.complete(requests[0])
    await asyncio.sleep(0)
    assert transport.written == []
    assert sent.count == 0
