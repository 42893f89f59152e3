"""The infer route on the fast lane against the application: the same requests on both ways."""

from pathlib import Path
from typing import Any

import orjson

from tests.support.lane import FLAT, JSON, NESTED, OCTETS, ONE, ask, assert_equal, of, service
from tests.support.wire import on_loop


def v2(rows: int = 1, data: Any = None, **more: Any) -> bytes:
    """Return a JSON body of the Open Inference Protocol."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [rows, 1, 28, 28]}
    tensor |= {"data": FLAT * rows if data is None else data}
    return orjson.dumps({"inputs": [tensor], **more})


def v2_binary(rows: int = 1, **more: Any) -> tuple[bytes, bytes]:
    """Return a body whose tensor stands behind its JSON, and the header that says where."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [rows, 1, 28, 28]}
    head = orjson.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 784 * rows}}], **more})
    return head + ONE * rows, b"Inference-Header-Content-Length: %d" % len(head)


BARE = b"Inference-Header-Content-Length: 0"
BINARY_OUT = {"parameters": {"binary_data_output": True}}
V2_FORMS: dict[str, tuple[bytes, ...]] = {
    "JSON": (v2(),),
    "three rows": (v2(3),),
    "nested": (v2(data=[[NESTED]]),),
    "bare bytes": (ONE, BARE),
    "three bare rows": (ONE * 3, BARE),
    "binary in": v2_binary(),
    "binary in and out": v2_binary(**BINARY_OUT),
    "binary out": (v2(2, **BINARY_OUT),),
    "one output": (v2(outputs=[{"name": "class_id"}]),),
    "outputs in another order, one binary": (
        v2(2, outputs=[{"name": "probabilities", "parameters": {"binary_data": True}}, {"name": "logits"}]),
    ),
    "classification": (v2(2, outputs=[{"name": "probabilities", "parameters": {"classification": 3}}]),),
    "id": (v2(id="mine"),),
    "timeout": (v2(parameters={"timeout": 5_000_000}),),
    "no timeout": (v2(parameters={"timeout": 0}),),
    "more than the largest batch": (v2(9),),
    "not JSON": (b"{",),
    "wrong shape": (v2(data=FLAT[1:]),),
    "256": (v2(data=[256, *FLAT[1:]]),),
    "unknown output": (v2(outputs=[{"name": "nothing"}]),),
    "eleven rows": (v2(11),),
    "bare bytes too few": (ONE[1:], BARE),
    "header beyond the body": (v2(), b"Inference-Header-Content-Length: 99999"),
    "header that is no number": (v2(), b"Inference-Header-Content-Length: x"),
    "bytes missing": (v2_binary()[0][:-1], v2_binary()[1]),
    "timeout that is none": (v2(parameters={"timeout": "soon"}),),
    "deadline of 0": (v2(), b"X-Deadline-Ms: 0"),
}


@on_loop
async def test_both_ways_answer_the_infer_route_alike(fashion: Path) -> None:
    """Every form and every error of the Open Inference Protocol, byte for byte; twice, as the lane remembers."""
    target = b"/v2/models/fashion/infer"
    async with service(fashion, buckets=(1, 2, 4, 8), max_rows=10) as server:
        for name, (body, *headers) in V2_FORMS.items():
            with of(name):
                async with server.connect() as client:
                    for _ in range(2):
                        await client.send(ask(body, JSON, *headers, target=target))
                        on_lane = await client.answer()
                        await client.send(ask(body, JSON, *headers, target=target + b"?"))
                        assert_equal(on_lane, await client.answer())


@on_loop
async def test_the_infer_route_takes_the_lane_and_shares_batches(fashion: Path) -> None:
    """Requests of both routes and all forms, sent at once, are answered right from one batch."""
    body, header = v2_binary(**BINARY_OUT)
    infer = b"/v2/models/fashion/infer"
    requests = [
        ask(ONE),
        ask(v2(), JSON, target=infer),
        ask(ONE, OCTETS, BARE, target=b"/v2/models/fashion/versions/1/infer"),
        ask(body, OCTETS, header, target=infer),
    ]
    async with service(fashion, buckets=(8,)) as server, server.connect() as client:
        alone = []
        for request in requests:
            await client.send(request)
            alone.append((await client.answer()).body)
        await client.send(b"".join(requests))
        assert [(await client.answer()).body for _ in requests] == alone
        assert server.seen == []
        statistics = server.model.statistics.to_json("fashion", 1)["inference_stats"]
        assert statistics["success"]["count"] == 8  # of /predict, too
