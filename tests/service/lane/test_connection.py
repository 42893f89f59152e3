"""The lane of a connection: order, the end of a connection, limits and pressure, on real sockets."""

import asyncio
import gc
import itertools
import os
import socket
import weakref
from pathlib import Path

import pytest

from tests.support import artifacts
from tests.support.lane import JSON, OCTETS, ONE, ask, held, instances, png, service
from tests.support.wire import Client, on_loop, until

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n"
CHUNKED = (
    b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: application/octet-stream\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def rows_of(body: bytes) -> int:
    """How many predictions an answer holds."""
    return body.count(b'"class_id"')


@on_loop
async def test_answers_keep_their_order_however_long_each_takes(fashion: Path) -> None:
    """A split request, one read in a thread and quick ones, on the lane and off it, in one packet."""
    nine = [image.ravel().tolist() for image in artifacts.images(9)]
    split, slow = ask(instances(*nine), JSON), ask(instances({"b64": png(120, 250)}, {"b64": png(28)}), JSON)
    async with service(fashion, buckets=(1, 4)) as server, server.connect() as client:
        for _ in range(2):
            await client.send(slow + ask(ONE) + split + ask(b"x") + ask(ONE * 3) + LIVE + ask(ONE * 2))
            answers = [await client.answer() for _ in range(7)]
            assert [answer.status for answer in answers] == [200, 200, 200, 400, 200, 200, 200]
            assert [rows_of(answer.body) for answer in answers] == [2, 1, 9, 0, 3, 0, 2]
        # What follows a request for the application while that runs goes there too.
        assert server.seen == ["/v2/health/live", "/predict"] * 2


@on_loop
async def test_a_head_that_is_known_is_refused_as_one_that_is_new(fashion: Path) -> None:
    """Knowing a head skips its reading and none of the checks: a body over the budget is 503, the connection ends."""
    body = artifacts.images(40).tobytes()
    async with service(fashion, max_buffered_bytes=8_000, max_rows=40, max_queue_rows=40) as server:
        for _ in range(2):
            async with server.connect() as client:
                await client.send(ask(body)[:20_000])
                answer = await client.answer()
                assert (answer.status, answer.headers["connection"]) == (503, "close")
        async with server.connect() as client:
            await client.send(ask(ONE))
            assert (await client.answer()).status == 200
        assert server.app.state.body_budget.held_bytes == 0


@on_loop
async def test_a_body_behind_a_known_head_has_to_come_in_time(fashion: Path) -> None:
    """Half of it is answered 408 in the end; the next connection with this head is answered."""
    async with service(fashion, body_seconds=1_000) as server:
        async with server.connect() as client:
            await client.send(ask(ONE))
            assert (await client.answer()).status == 200
            (connection,) = server.server.server_state.connections
            await client.send(ask(ONE)[:-100])
            await until(lambda: connection.receiving is not None)
            connection.check(asyncio.get_running_loop().time() + 2_000)
            assert (await client.answer()).status == 408
        assert server.app.state.body_budget.held_bytes == 0


@on_loop
async def test_a_body_behind_a_known_head_has_its_own_time(fashion: Path) -> None:
    """It begins with the request, however long the connection rested before."""
    async with service(fashion, body_seconds=1_000) as server, server.connect() as client:
        await client.send(ask(ONE))
        assert (await client.answer()).status == 200
        (connection,) = server.server.server_state.connections
        connection.deadlines.since -= 2_000
        await client.send(ask(ONE)[:-100])
        await until(lambda: connection.receiving is not None)
        connection.check(asyncio.get_running_loop().time())
        await client.send(ONE[-100:])
        assert (await client.answer()).status == 200


@on_loop
async def test_a_client_that_ends_in_mid_body_is_told_so(fashion: Path) -> None:
    """Half-closed with half a body, known head or new: 400, and nothing of it is run."""
    async with service(fashion) as server:
        for known in (False, True):
            async with server.connect() as client:
                if known:
                    await client.send(ask(ONE))
                    assert (await client.answer()).status == 200
                await client.send(ask(ONE)[:-100])
                client.end()
                assert (await client.answer()).status == 400
                assert await client.is_closed()
        assert server.app.state.body_budget.held_bytes == 0


@on_loop
async def test_a_client_that_finished_sending_gets_all_its_answers(fashion: Path) -> None:
    """Half-closed behind whole requests: they are answered in order, then comes the end."""
    nine = instances(*(image.ravel().tolist() for image in artifacts.images(9)))
    async with service(fashion, buckets=(1, 4)) as server, server.connect() as client:
        await client.send(ask(nine, JSON) + ask(ONE))
        client.end()
        answers = []
        while len(answers) < 2:
            answer = await client.answer()
            if answer.status != 100:  # the interim answer that asks whether it still listens
                answers.append(rows_of(answer.body))
        assert answers == [9, 1]
        assert await client.is_closed()


@pytest.mark.parametrize("method", [b"HEAD", b"GET", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"])
@on_loop
async def test_another_method_is_the_applications(fashion: Path, method: bytes) -> None:
    """With the very headers of a known request it is refused, and the connection stays in step."""
    async with service(fashion) as server, server.connect() as client:
        await client.send(ask(ONE))
        right = await client.answer()
        await client.send(ask(ONE).replace(b"POST", method, 1))
        answer = await client.answer(has_body=method != b"HEAD")
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        await client.send(ask(ONE))
        assert (await client.answer()).body == right.body
        assert server.seen == ["/predict"]


@on_loop
async def test_an_older_http_is_answered_and_ends(fashion: Path) -> None:
    """HTTP/1.0 knows no connection that goes on; with the head of a known request it is not taken for it."""
    async with service(fashion) as server:
        for _ in range(2):
            async with server.connect() as client:
                await client.send(ask(ONE))
                assert (await client.answer()).status == 200
                await client.send(ask(ONE).replace(b"HTTP/1.1", b"HTTP/1.0") + ask(ONE))
                assert (await client.answer()).status == 200
                assert await client.is_closed()
        assert server.seen == ["/predict"] * 2


@on_loop
async def test_a_client_that_waits_for_100_gets_it_on_a_known_connection(fashion: Path) -> None:
    """A body that is announced and held back is asked for, then answered, then the lane goes on."""
    async with service(fashion) as server, server.connect() as client:
        await client.send(ask(ONE))
        right = (await client.answer()).body
        request = ask(ONE, OCTETS, b"Expect: 100-continue")
        await client.send(request[: -len(ONE)])
        assert (await client.answer()).status == 100
        await client.send(ONE + ask(ONE))
        assert [(await client.answer()).body for _ in range(2)] == [right, right]


@on_loop
async def test_a_chunked_body_and_one_that_waits_for_100_are_answered_too(fashion: Path) -> None:
    """Neither is for the lane; both are for the service."""
    async with service(fashion) as server, server.connect() as client:
        await client.send(
            b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: application/octet-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n310\r\n" + ONE + b"\r\n0\r\n\r\n"
        )
        chunked = await client.answer()
        head, body = ask(ONE, OCTETS, b"Expect: 100-continue").split(b"\r\n\r\n", 1)
        await client.send(head + b"\r\n\r\n")
        assert (await client.answer()).status == 100
        await client.send(body)
        assert (await client.answer()).body == chunked.body


@pytest.mark.parametrize("cuts", [(1,), (20,), (-784,), (-783,), (-1,), (30, -784, -400, -1)])
@on_loop
async def test_requests_in_pieces_are_answered(fashion: Path, cuts: tuple[int, ...]) -> None:
    """Wherever the network cuts a request, new or known, its answer is the same."""
    request = ask(ONE)
    places = [0, *(cut % len(request) for cut in cuts), len(request)]
    async with service(fashion) as server, server.connect() as client:
        await client.send(request)
        whole = await client.answer()
        for _ in range(2):
            for start, stop in itertools.pairwise(places):
                await client.send(request[start:stop])
                await asyncio.sleep(0.002)  # a packet of its own
            assert (await client.answer()).body == whole.body


@on_loop
async def test_requests_that_share_packets_are_answered_in_order(fashion: Path) -> None:
    """Several in one packet, and one and a half: each gets its own answer."""
    rows = artifacts.images(8)
    requests = [ask(row.tobytes()) for row in rows]
    async with service(fashion) as server, server.connect() as client:
        alone = []
        for request in requests:
            await client.send(request)
            alone.append((await client.answer()).body)
        stream = b"".join(requests)
        for size in (len(stream), len(requests[0]) * 3 // 2):
            for start in range(0, len(stream), size):
                await client.send(stream[start : start + size])
            assert [(await client.answer()).body for _ in rows] == alone


@on_loop
async def test_order_is_kept_between_the_lane_and_the_application(fashion: Path) -> None:
    """Pipelined requests for both are answered in order."""
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n"
    async with service(fashion) as server, server.connect() as client:
        for _ in range(3):
            await client.send(ask(ONE) + live + ask(ONE) + ask(b"x") + live + live + ask(ONE))
            bodies = [(await client.answer()).body[:9] for _ in range(7)]
            yes, no = b'{"model":', b'{"live":t'
            assert bodies == [yes, no, yes, b'{"error":', no, no, yes]


@on_loop
async def test_rubbish_behind_a_request_takes_nothing_from_it(fashion: Path) -> None:
    """The answer comes first, then the refusal, then the end."""
    async with service(fashion) as server, server.connect() as client:
        for _ in range(2):
            await client.send(ask(ONE) + b"rubbish\r\n\r\n")
            assert (await client.answer()).status == 200
            assert (await client.answer()).status == 400
            assert await client.is_closed()
            break
    async with service(fashion) as server, server.connect() as client:
        await client.send(ask(ONE))
        await client.answer()
        await client.send(ask(ONE) + b"rubbish\r\n\r\n")
        assert [(await client.answer()).status for _ in range(2)] == [200, 400]
        assert await client.is_closed()


@on_loop
async def test_close_is_honoured_on_the_lane(fashion: Path) -> None:
    """New or known, a request that asks for it is the connection's last."""
    async with service(fashion) as server:
        for _ in range(2):
            async with server.connect() as client:
                await client.send(ask(ONE, OCTETS, b"Connection: close") + ask(ONE))
                assert (await client.answer()).headers["connection"] == "close"
                assert await client.is_closed()


# -- pressure ----------------------------------------------------------------------------------------------------


@on_loop
async def test_no_more_is_read_than_may_wait(fashion: Path) -> None:
    """While the engine is held a flood is left in the client's own buffers; afterwards all of it is answered."""
    flood = 2_000
    async with held(fashion, max_queue_rows=10_000) as (server, valve, _first), server.connect() as client:
        sending = asyncio.create_task(client.send(ask(ONE) * flood))
        await until(lambda: len(server.server.server_state.connections) == 2)
        connection = next(
            c for c in server.server.server_state.connections if len(c.outbox.due) != 1 or c.flow.read_paused
        )
        await until(lambda: connection.flow.read_paused)
        for _ in range(20):
            await asyncio.sleep(0)
        assert connection.guard.limits.pipelined < len(connection.outbox.due) < flood
        valve.open.set()
        assert [(await client.answer()).status for _ in range(flood)] == [200] * flood
        await sending
        assert not connection.flow.read_paused


@on_loop
async def test_who_does_not_read_is_not_read_from(fashion: Path) -> None:
    """Answers that are not read stop the requests, one at a time as they come; then every one is answered."""
    asked, most = 0, 2_000
    async with service(fashion, buckets=(64,)) as server:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4_096)
        client = Client(reader, writer)
        await until(lambda: bool(server.server.server_state.connections))
        (connection,) = server.server.server_state.connections
        while not connection.flow.read_paused and asked < most:
            answered = server.server.server_state.total_requests
            await client.send(ask(ONE * 64))
            asked += 1
            await until(lambda answered=answered: server.server.server_state.total_requests > answered)
        assert connection.flow.write_paused
        assert asked < most
        assert [(await client.answer()).status for _ in range(asked)] == [200] * asked
        assert not connection.flow.read_paused
        writer.close()


@on_loop
async def test_refusals_do_not_keep_the_loop_from_turning(fashion: Path) -> None:
    """They are told at the end of the turn: who asks again at once is read in the next, after batches and timers."""
    async with service(fashion) as server, server.connect() as client:
        await client.send(ask(ONE))
        assert (await client.answer()).status == 200
        (connection,) = server.server.server_state.connections
        connection.data_received(ask(b"x") + ask(ONE[1:]))
        assert len(connection.outbox.due) == 2
        await asyncio.sleep(0)
        assert not connection.outbox.due
        assert [(await client.answer()).status for _ in range(2)] == [400, 400]


# -- bad luck, again and again -------------------------------------------------------------------------------------


@on_loop
async def test_clients_that_vanish_at_any_moment_leave_nothing_behind(fashion: Path, caplog) -> None:
    """Within the head, the body, the queue or the answer: no descriptor, task, byte or queued row stays, no trace."""
    request = ask(ONE)
    cuts = [1, 30, len(request) - len(ONE), len(request) - 1, len(request), len(request) + 40]
    async with service(fashion, buckets=(1, 4)) as server:
        async with server.connect() as client:
            await client.send(request)
            assert (await client.answer()).status == 200
        await until(lambda: not server.server.server_state.connections)
        descriptors, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
        for number in range(60):
            async with server.connect() as client, server.connect() as other:
                await client.send((request * 2)[: cuts[number % len(cuts)]])
                await other.send(request)
                client.reset() if number % 2 else client.writer.close()
                assert (await other.answer()).status == 200
        await until(lambda: not server.server.server_state.connections)
        assert server.model.batcher.queued_rows == server.app.state.body_budget.held_bytes == 0
        await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert not [record for record in caplog.records if record.exc_info]


@on_loop
async def test_a_closed_connection_is_freed_at_once(fashion: Path) -> None:
    """Nothing of the lane refers to it any more: its memory does not wait for the collector."""
    async with service(fashion) as server:
        async with server.connect() as client:
            await client.send(ask(ONE) * 3)
            assert [(await client.answer()).status for _ in range(3)] == [200] * 3
            connection = weakref.ref(next(iter(server.server.server_state.connections)))
            gc.collect()
            gc.disable()
        try:
            await until(lambda: not server.server.server_state.connections)
            await asyncio.sleep(0.001)
            assert connection() is None
        finally:
            gc.enable()


async def _objects_after(client: Client, requests: list[bytes], rounds: int, leak: list[object] | None = None) -> int:
    """How many objects the process holds after so many rounds of requests."""
    for _ in range(rounds):
        await client.send(b"".join(requests))
        for _request in requests:
            answer = await client.answer()
            if leak is not None:
                leak.append([answer.status])
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.parametrize("leaks", [False, True])
@on_loop
async def test_good_and_malformed_requests_leave_no_object(fashion: Path, leaks: bool) -> None:
    """Memory is bounded on the good way and on the way of errors; the control, which leaks one a request, is caught."""
    requests = [ask(ONE), ask(b"x"), ask(instances([1, 2])), ask(b"{", JSON), ask(b"null", JSON), LIVE, ask(ONE * 3)]
    leak: list[object] | None = [] if leaks else None
    async with service(fashion) as server, server.connect() as client:
        before = await _objects_after(client, requests, 30)
        grown = await _objects_after(client, requests, 100, leak) - before
        assert (grown > 500) == leaks, grown


@on_loop
async def test_a_body_in_ten_thousand_chunks_costs_no_memory(fashion: Path) -> None:
    """As many pieces as bytes are put together, or refused at the limit, and none of them stays."""
    chunk = b"".join(b"1\r\n%b\r\n" % ONE[at : at + 1] for at in range(len(ONE))) + b"0\r\n\r\n"
    endless = b"1\r\nx\r\n" * 10_000
    async with service(fashion, max_body_bytes=2_000, max_rows=2) as server:
        for _ in range(5):
            async with server.connect() as client:
                await client.send(CHUNKED + chunk)
                assert (await client.answer()).status == 200
                await client.send(CHUNKED + endless)
                assert (await client.answer()).status == 413
        assert server.app.state.body_budget.held_bytes == 0


@on_loop
async def test_many_slow_clients_keep_no_other_from_being_answered(fashion: Path) -> None:
    """Two hundred half-sent heads and bodies, each given up in time, beside one that is answered all the while."""
    async with service(fashion, header_seconds=0.3, body_seconds=0.3) as server, server.connect() as client:
        await client.send(ask(ONE))
        assert (await client.answer()).status == 200
        slow = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(200)]
        for number, (_, writer) in enumerate(slow):
            writer.write(ask(ONE)[: 40 if number % 2 else -1])
        asked = 0
        while len(server.server.server_state.connections) > 1 or asked < 20:
            await client.send(ask(ONE))
            assert (await client.answer()).status == 200
            asked += 1
        told = [await reader.read() for reader, _ in slow]
        for _, writer in slow:
            writer.close()
        assert {answer[9:12] for answer in told} == {b"408"}


@pytest.mark.parametrize("vanish", ["reset", "close"])
@on_loop
async def test_a_client_that_has_gone_costs_no_run(fashion: Path, vanish: str) -> None:
    """Its request is dropped from the queue, whether its system said goodbye or not."""
    async with held(fashion) as (server, valve, first):
        async with server.connect() as second:
            await second.send(ask(ONE))
            await until(lambda: server.model.batcher.queued_rows == 1)
            second.reset() if vanish == "reset" else second.writer.close()
            await until(lambda: len(server.server.server_state.connections) == 1)
        valve.open.set()
        assert (await first.answer()).status == 200
        await first.send(ask(ONE))
        assert (await first.answer()).status == 200
        assert valve.runs == 2


@on_loop
async def test_a_client_that_only_stopped_sending_is_answered(fashion: Path) -> None:
    """After the interim answer that tells the two apart comes the real one."""
    async with held(fashion) as (server, valve, _first), server.connect() as second:
        await second.send(ask(ONE))
        second.end()
        assert (await second.answer()).status == 100
        valve.open.set()
        assert (await second.answer()).status == 200
        assert await second.is_closed()


@on_loop
async def test_a_request_on_the_lane_is_answered_before_the_end(fashion: Path) -> None:
    """SIGTERM waits for the engine; the answer says that the connection ends."""
    async with held(fashion) as (server, valve, first):
        stopping = asyncio.create_task(server.stop())
        await until(lambda: server.server.should_exit and not server.server.servers[0].is_serving())
        valve.open.set()
        assert (await first.answer()).status == 200
        assert await first.is_closed()
        await stopping
