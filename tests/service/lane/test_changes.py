"""The fast lane beside what changes under it: versions that move, candidates that listen, doors that need a key."""

from pathlib import Path

from foldserve.service.keys import new_key
from tests.support import artifacts
from tests.support.lane import ONE, ask, service
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


@on_loop
async def test_a_closed_door_is_closed_on_the_lane_too(fashion: Path, tmp_path: Path) -> None:
    """Where predicting needs a key, a request without one is refused and one with it is answered."""
    key, line = new_key("someone", ["infer"])
    (tmp_path / "keys").write_text(line)
    async with service(fashion, keys_file=tmp_path / "keys") as server, server.connect() as client:
        await client.send(ask(ONE))
        assert (await client.answer()).status == 401
        await client.send(ask(ONE, b"application/octet-stream", b"X-API-Key: " + key.encode()))
        assert (await client.answer()).status == 200
