"""Which requests take the fast lane, and how heads are known again."""

from base64 import b64decode
from pathlib import Path

import orjson

from foldserve.service.lane.fast_lane import VERSION_ROUTE
from tests.support.lane import FLAT, JSON, OCTETS, ONE, ask, instances, png, service
from tests.support.wire import on_loop


@on_loop
async def test_usual_requests_take_the_lane_and_others_the_application(fashion: Path) -> None:
    """The comparison above compares two ways only if there are two."""
    async with service(fashion) as server, server.connect() as client:
        file = ask(b64decode(png(28)), b"image/png")
        for request in (ask(ONE), ask(instances(FLAT), JSON), file, ask(ONE, target=b"/predict?model=fashion")):
            await client.send(request)
            assert (await client.answer()).status == 200
        assert server.seen == []
        unusual = [b"Content-Encoding: gzip", b"Content-Encoding: identity", b"Content-Type: text/plain"]
        for header in unusual:
            await client.send(ask(ONE, OCTETS, header))
            await client.answer()
        await client.send(ask(ONE, b"image/webp"))
        await client.answer()
        await client.send(b"GET /predict HTTP/1.1\r\nHost: here\r\n\r\n")
        assert (await client.answer()).status == 405
        assert server.seen == ["/predict"] * 5


@on_loop
async def test_the_description_names_what_the_lane_answers(fashion: Path) -> None:
    """Every target and media type of the lane stands in the OpenAPI document, since /docs is what users see."""
    async with service(fashion) as server, server.connect() as client:
        await client.send(ask(ONE))
        await client.answer()
        (connection,) = server.server.server_state.connections
        described = server.app.openapi()["paths"]
        for route in (endpoint.route for endpoint in connection.lane.shared.endpoints.values()):
            if route.label != VERSION_ROUTE:  # the same operation under a longer path, left out of the page
                content = described[route.label]["post"]["requestBody"]["content"]
                files = {"image/png", "image/jpeg"} if route.label == "/predict" else set()
                assert {OCTETS.decode(), JSON.decode(), *files} <= set(content)


@on_loop
async def test_a_known_head_is_answered_as_the_first_time(fashion: Path) -> None:
    """The second request of the same bytes is not parsed, and its answer is the same."""
    async with service(fashion) as server, server.connect() as client, server.connect() as other:
        await client.send(ask(ONE))
        first = await client.answer()
        for again in (client, client, other):
            await again.send(ask(ONE))
            assert (await again.answer()).body == first.body
        (connection, _) = server.server.server_state.connections
        assert len(connection.lane.shared.heads) == 1


@on_loop
async def test_a_stray_line_does_not_teach_the_lane_a_head(fashion: Path) -> None:
    """The empty line that some clients send behind a body must not become a known head."""
    async with service(fashion) as server, server.connect() as client:
        await client.send(b"\r\n\r\n" + ask(ONE))
        assert (await client.answer()).status == 200
        await client.send(b"\r\n\r\n" + b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n")
        assert orjson.loads((await client.answer()).body) == {"live": True}
