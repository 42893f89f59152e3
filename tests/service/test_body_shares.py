"""Stalled uploads of one address beside the honest ones of another, at every door of HTTP."""

import asyncio
from pathlib import Path

import pytest

from tests.support.lane import ONE, ask, service
from tests.support.wire import Answer, Client, on_loop, until

LENGTH = len(ONE)
STATED = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\nContent-Length: 900000\r\n\r\n"
DOORS = {
    "lane": STATED.replace(b"900000", b"7840") % (b"/predict", b"application/octet-stream"),
    "application": b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n1e00\r\n",
    "v2": STATED % (b"/v2/models/fashion/infer", b"application/json"),
    "form": STATED % (b"/predict", b"multipart/form-data; boundary=x"),
}


async def answer_to(port: int, request: bytes, address: str) -> Answer:
    """Ask from an address of this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    client = Client(reader, writer)
    await client.send(request)
    try:
        return await client.answer()
    finally:
        writer.close()


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@on_loop
async def test_stalled_uploads_give_way_to_another_address(fashion: Path, door: bytes) -> None:
    """One address fills the budget and stops: one of its uploads is told so, and the other address is answered."""
    async with service(fashion, max_buffered_bytes=2 * 7_000) as server:
        budget = server.app.state.body_budget
        async with server.connect() as first, server.connect() as second:
            for held, client in enumerate((first, second), start=1):
                await client.send(door + bytes(7_000))
                await until(lambda held=held: budget.held_bytes == held * 7_000)
            request = ask(ONE).replace(b"Content-Length: %d\r\n" % LENGTH, b"Transfer-Encoding: chunked\r\n")
            chunked = request.replace(ONE, b"%x\r\n%b\r\n0\r\n\r\n" % (LENGTH, ONE))
            own = await answer_to(server.port, chunked, "127.0.0.1")
            assert own.status == 503
            assert budget.held_bytes == 2 * 7_000
            other = await answer_to(server.port, chunked, "127.0.0.2")
            assert other.status == 200
            answers = [asyncio.create_task(client.answer()) for client in (first, second)]
            done, left = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result().status for task in done] == [503]
            assert "others needed the room" in next(iter(done)).result().error
            for task in left:
                task.cancel()
        await until(lambda: budget.held_bytes == 0)
        assert budget.by_address == {}
        assert budget.arriving == set()


@on_loop
async def test_a_trusted_proxy_tells_its_clients_apart(fashion: Path) -> None:
    """Behind it the stalled client gives way to another one, though both come from one address."""
    async with service(fashion, max_buffered_bytes=7_000, trusted_proxies=("127.0.0.1",)) as server:
        budget = server.app.state.body_budget
        async with server.connect() as stalled:
            head = DOORS["lane"].replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n")
            await stalled.send(head + bytes(7_000))
            await until(lambda: budget.held_bytes == 7_000)
            assert set(budget.by_address) == {"192.0.2.7"}
            headers = (b"X-Forwarded-For: 192.0.2.8", b"Content-Encoding: identity")
            request = ask(ONE, b"application/octet-stream", *headers)
            assert (await answer_to(server.port, request, "127.0.0.1")).status == 200
            assert (await stalled.answer()).status == 503
