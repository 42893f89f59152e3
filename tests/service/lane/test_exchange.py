"""An answer of the fast lane: its id, what counts it, and what goes wrong in queue, run and writing."""

from pathlib import Path

import numpy as np

from tests.support.lane import (
    OCTETS,
    ONE,
    ask,
    held,
    service,
)
from tests.support.wire import on_loop, until


@on_loop
async def test_request_ids_are_given_and_kept(fashion: Path) -> None:
    """A safe id comes back; an unsafe one, or none, is replaced by one that is new each time."""
    async with service(fashion) as server, server.connect() as client:
        seen = set()
        for header in (b"X-Request-ID: mine-7", b"X-Request-ID: not safe", b"X-Other: none", b"X-Other: none"):
            await client.send(ask(ONE, OCTETS, header))
            seen.add((await client.answer()).headers["x-request-id"])
        assert "mine-7" in seen
        assert "not safe" not in seen
        assert len(seen) == 4


@on_loop
async def test_answers_on_the_lane_are_counted(fashion: Path) -> None:
    """The metrics know of each answer by its status, in the counter and in the histogram."""
    async with service(fashion) as server, server.connect() as client:
        for body in (ONE, ONE, ONE, b"x"):
            await client.send(ask(body))
            await client.answer()
        text = server.app.state.metrics.exposition().decode()
        assert 'foldserve_requests_total{method="POST",route="/predict",status="200"} 3.0' in text
        assert 'foldserve_requests_total{method="POST",route="/predict",status="400"} 1.0' in text
        assert 'foldserve_request_seconds_count{route="/predict"} 4.0' in text
        assert 'foldserve_request_seconds_bucket{le="5.0",route="/predict"} 4.0' in text


@on_loop
async def test_refusals_of_the_connection_are_counted(fashion: Path) -> None:
    """An answer below application and lane is an answer too: the metrics have it, under no route of ours."""
    async with service(fashion) as server, server.connect() as client:
        await client.send(b"rubbish\r\n\r\n")
        assert (await client.answer()).status == 400
        text = server.app.state.metrics.exposition().decode()
        assert 'foldserve_requests_total{method="other",route="unknown",status="400"} 1.0' in text


@on_loop
async def test_a_deadline_that_passes_in_the_queue_is_answered_504(fashion: Path) -> None:
    """The client hears of it when it happens rather than when the engine frees."""
    async with held(fashion) as (server, _valve, _first), server.connect() as second:
        await second.send(ask(ONE, OCTETS, b"X-Deadline-Ms: 100"))
        answer = await second.answer()
        assert answer.status == 504
        assert "deadline" in answer.error


@on_loop
async def test_a_full_queue_is_answered_503_with_retry_after(fashion: Path) -> None:
    """Beyond the rows that may wait there is a computed time to come back."""
    async with held(fashion, max_rows=16, max_queue_rows=16) as (server, _valve, _first), server.connect() as second:
        await second.send(ask(ONE) * 16)
        async with server.connect() as third:
            await until(lambda: server.model.batcher.queued_rows >= 12)
            await third.send(ask(ONE))
            answer = await third.answer()
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) >= 1


@on_loop
async def test_a_row_that_is_not_a_number_harms_only_itself(fashion: Path) -> None:
    """Its request gets 500; the neighbours in the same batch get their answers."""
    async with service(fashion, buckets=(4,)) as server, server.connect() as client:
        await client.send(ask(ONE))
        right = (await client.answer()).body
        run = server.model.engine.run

        def poisoned(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            outputs = {name: array.copy() for name, array in run(inputs).items()}
            outputs["probabilities"][1, 3] = np.nan
            return outputs

        server.model.engine.run = poisoned
        await client.send(ask(ONE) * 3)
        answers = [await client.answer() for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 500, 200]
        assert answers[0].body == answers[2].body == right


@on_loop
async def test_answers_that_cannot_be_written_are_500_and_leave_no_client_waiting(fashion: Path) -> None:
    """An output that no route can read, a mistake of ours, ends in an error for each and a connection that goes on."""
    async with service(fashion, buckets=(4,)) as server, server.connect() as client:
        await client.send(ask(ONE))
        right = (await client.answer()).body
        run = server.model.engine.run
        server.model.engine.run = lambda inputs: {"probabilities": run(inputs)["probabilities"]}
        await client.send(ask(ONE) * 3)
        answers = [await client.answer() for _ in range(3)]
        assert [answer.status for answer in answers] == [500] * 3
        assert "KeyError" not in answers[0].error
        server.model.engine.run = run
        await client.send(ask(ONE))
        assert (await client.answer()).body == right
