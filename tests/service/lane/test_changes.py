"""The fast lane beside what changes under it: versions that move, candidates that listen, doors that need a key."""

import re
from pathlib import Path

from foldserve.service.keys import new_key, revoke_key
from tests.support import artifacts
from tests.support.lane import OCTETS, ONE, ask, assert_equal, both, service
from tests.support.wire import on_loop, until


@on_loop
async def test_a_promoted_version_answers_the_very_next_request(fashion: Path) -> None:
    """Also where the connection is open and the head of its requests is known by its bytes."""
    async with service(fashion, poll_seconds=0) as server, server.connect() as client:
        await client.send(ask(ONE))
        assert (await client.answer()).headers["x-model-version"] == "1"
        artifacts.publish_classifier(fashion, version=2, seed=2)
        await server.app.state.control.load("fashion")
        await client.send(ask(ONE))
        assert (await client.answer()).headers["x-model-version"] == "2"
        assert server.seen == []  # none of it left the lane


@on_loop
async def test_a_body_that_spans_a_promotion_is_answered_by_the_new_version(fashion: Path) -> None:
    """What answers is chosen when the request is whole, so that no version answers that has left."""
    async with service(fashion, poll_seconds=0, keep_warm=0) as server, server.connect() as client:
        request = ask(ONE)
        await client.send(request[:-5])
        connections = server.server.server_state.connections
        await until(lambda: any(connection.receiving for connection in connections))
        artifacts.publish_classifier(fashion, version=2, seed=2)
        await server.app.state.control.load("fashion")
        await client.send(request[-5:])
        answer = await client.answer()
        assert (answer.status, answer.headers["x-model-version"]) == (200, "2")


@on_loop
async def test_a_candidate_gets_a_copy_of_what_the_lane_answers(fashion: Path, tmp_path: Path) -> None:
    """A shadow would be blind if the fastest way did not show it what it answers."""
    artifacts.publish_classifier(fashion, version=2, seed=2)
    async with service(fashion, poll_seconds=0, state_dir=tmp_path / "state") as server, server.connect() as client:
        control = server.app.state.control
        await control.shadow("fashion", 1, 60.0)
        await client.send(ask(ONE))
        await client.answer()
        await until(lambda: control.shadow_report("fashion")["rows"])
        assert server.seen == []


def keys_of(path: Path, *scopes: str) -> list[bytes]:
    """Write a file with one key for each scope; returns their headers."""
    made = [new_key(f"the-{scope}", [scope]) for scope in scopes]
    path.write_text("\n".join(line for _, line in made) + "\n")
    return [b"X-API-Key: " + key.encode() for key, _ in made]


@on_loop
async def test_a_closed_door_is_closed_on_the_lane_too(fashion: Path, tmp_path: Path) -> None:
    """No key, a wrong one and one of another scope are refused in the application's words; the right one is answered.

    On the lane, in either of its two headers, the first time as later.
    """
    infer, metrics = keys_of(tmp_path / "keys", "infer", "metrics")
    bearer = b"Authorization: Bearer " + infer.partition(b": ")[2]
    async with service(fashion, keys_file=tmp_path / "keys") as server:
        for header, status in {
            b"X-Other: none": 401, b"X-API-Key: wrong": 401, metrics: 403, infer: 200, bearer: 200,
            b"Authorization: Basic " + infer.partition(b": ")[2]: 401,
        }.items():  # fmt: skip
            server.seen.clear()
            on_lane, application = await both(server, ONE, OCTETS, header)
            again, _ = await both(server, ONE, OCTETS, header)
            assert on_lane.status == again.status == status
            assert_equal(on_lane, application) if status == 200 else None
            assert on_lane.body.replace(b"'/predict'", b"") == application.body.replace(b"'/predict'", b"")
            assert len(server.seen) == (2 if status == 200 else 4)


@on_loop
async def test_a_key_that_was_taken_back_is_refused_at_the_next_request(fashion: Path, tmp_path: Path) -> None:
    """Also where connection and head are known, and the other key goes on; what was refused stays refused."""
    infer, _ = keys_of(tmp_path / "keys", "infer", "read")
    async with service(fashion, keys_file=tmp_path / "keys") as server, server.connect() as client:
        file = server.app.state.access.file
        for _ in range(3):
            await client.send(ask(ONE, OCTETS, infer))
            assert (await client.answer()).status == 200
        assert server.seen == []
        before = file.keys
        revoke_key(tmp_path / "keys", "the-infer")
        file.reload()
        await until(lambda: file.keys is not before)
        for _ in range(2):
            await client.send(ask(ONE, OCTETS, infer))
            assert (await client.answer()).status == 401
        assert len(server.seen) == 2


@on_loop
async def test_a_key_that_is_given_out_is_taken_at_the_next_request(fashion: Path, tmp_path: Path) -> None:
    """What was refused a moment ago is not remembered as refused."""
    keys_of(tmp_path / "keys", "infer")
    key, line = new_key("later", ["infer"])
    async with service(fashion, keys_file=tmp_path / "keys") as server, server.connect() as client:
        file = server.app.state.access.file
        await client.send(ask(ONE, OCTETS, b"X-API-Key: " + key.encode()))
        assert (await client.answer()).status == 401
        (tmp_path / "keys").write_text((tmp_path / "keys").read_text() + line + "\n")
        file.reload()
        await until(lambda: len(file.keys) == 2)
        await client.send(ask(ONE, OCTETS, b"X-API-Key: " + key.encode()))
        assert (await client.answer()).status == 200


@on_loop
async def test_a_share_that_is_used_up_is_refused_on_the_lane_too(fashion: Path, tmp_path: Path) -> None:
    """Each request counts once, whichever way it takes, and both ways refuse in the same words and counters."""
    (infer,) = keys_of(tmp_path / "keys", "infer")
    async with service(fashion, keys_file=tmp_path / "keys", key_rate=0.01) as server, server.connect() as client:
        server.app.state.access._buckets.clear()
        await client.send(ask(ONE, OCTETS, infer))
        assert (await client.answer()).status == 200
        answers = []
        for target in (b"/predict", b"/predict", b"/predict?"):
            await client.send(ask(ONE, OCTETS, infer, target=target))
            answers.append(await client.answer())
        assert [answer.status for answer in answers] == [429] * 3
        words = {re.sub(r"[0-9.]+ s$", "", answer.error) for answer in answers}
        assert words == {"key 'the-infer' has sent more than 0.01 requests a second; wait "}
        assert all(95 <= int(answer.headers["retry-after"]) <= 101 for answer in answers)
        assert len({frozenset(answer.headers) for answer in answers}) == 1
        assert server.seen == ["/predict"]
        text = server.app.state.metrics.exposition().decode()
        assert 'foldserve_requests_total{method="POST",route="unknown",status="429"} 3.0' in text
