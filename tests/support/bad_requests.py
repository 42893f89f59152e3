"""Requests that must be refused: what a sender can get wrong in the protocol, by mistake or on purpose.

One table for the tests, which look at status and sentence, and for `benchmarks/serving/bad_input.py`, which looks at
the time. All are for the model `fashion` of `artifacts.publish_classifier`, served with at most `MAX_ROWS` rows in a
request.
"""

import gzip
import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.support import artifacts, v2_messages

MAX_ROWS = 256
INFER = "/v2/models/fashion/infer"
HEADER_LENGTH = "Inference-Header-Content-Length"
PIXELS = artifacts.images(1, seed=5)
DEEP = 250_000


@dataclass(frozen=True)
class BadRequest:
    """One of them: what is sent, the status that it gets, and words that its sentence holds."""

    name: str
    status: int
    says: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    path: str = INFER


def document(**members: Any) -> dict[str, Any]:
    """A right request; `members` replace its members, those of `image` the members of its input."""
    image = {"name": "image", "shape": [1, 1, 28, 28], "datatype": "UINT8", "data": PIXELS.ravel().tolist()}
    image |= members.pop("image", {})
    return {"inputs": [{key: value for key, value in image.items() if value is not None}], **members}


def text(**members: Any) -> bytes:
    """The same as bytes."""
    return json.dumps(document(**members)).encode()


def binary(size: Any, sent: int = 784, **members: Any) -> tuple[bytes, dict[str, str]]:
    """A request whose input is bytes: how many it says and how many it sends."""
    image = {"data": None, "parameters": {"binary_data_size": size}, **members.pop("image", {})}
    head = text(image=image, **members)
    return head + bytes(sent), {HEADER_LENGTH: str(len(head))}


def first_value(value: bytes) -> bytes:
    """A request with another first value."""
    return text(image={"data": ["X"] + [0] * 783}).replace(b'"X"', value)


NAMES = {
    "of another folder": "../../etc/passwd",
    "with NUL": "fash\0ion",
    "in Unicode": "\u202efashion\U0001f45f",
    "of 10,000 characters": "x" * 10_000,
}
IN_PATHS = {
    "..": "..%2f..%2fetc",
    "NUL": "fashion%00",
    "Unicode": "%E2%80%AEfashion",
    "10,000 characters": "x" * 10_000,
}
BOMB = gzip.compress(bytes(100_000_000), 9, mtime=0)
FLAT_BOMB = zlib.compress(bytes(100_000_000), 9)

SHAPES = [
    BadRequest(f"shape {name}", 400, says, text(image={"shape": shape}))
    for name, shape, says in (
        ("of 2^60 columns", [1, 1, 28, 2**60], "shape"),
        ("whose size overflows 64 bits", [1, 2**32, 2**32, 2**32], "shape"),
        ("of 2^63 channels", [1, 2**63, 28, 28], "shape"),
        ("of 2^100 channels", [1, 2**100, 28, 28], "shape"),
        ("with a negative size", [1, 1, -28, -28], "shape"),
        ("of no rows", [0, 1, 28, 28], "shape"),
        ("with a fraction", [1.5, 1, 28, 28], "shape"),
        ("of truths", [True, True, 28, 28], "shape"),
        ("of words", ["one", 1, 28, 28], "shape"),
        ("of 100,000 axes", [1] * 100_000, "shape"),
        ("that is none", "1,1,28,28", "shape"),
        ("that is missing", None, "shape"),
    )
] + [BadRequest("shape of 2^60 rows", 413, "rows, expected at most", text(image={"shape": [2**60, 1, 28, 28]}))]

LENGTHS = [
    BadRequest(f"header length {name}", 400, HEADER_LENGTH, text(), {HEADER_LENGTH: value})
    for name, value in (("beyond the body", "999999"), ("negative", "-1"), ("of words", "ten"), ("of 10^4", "9" * 4000))
] + [BadRequest("header length that cuts the JSON", 400, "body: not JSON", text(), {HEADER_LENGTH: "20"})]

SIZES = [
    BadRequest(f"binary size {name}", 400, says, *binary(size, sent))
    for name, size, sent, says in (
        ("too small", 783, 783, "784"),
        ("too large", 785, 785, "784"),
        ("of more bytes than were sent", 784, 700, "700 bytes behind the JSON, expected 784"),
        ("of fewer bytes than were sent", 784, 900, "900 bytes behind the JSON, expected 784"),
        ("negative", -784, 784, "binary_data_size"),
        ("of 2^63", 2**63, 784, "binary_data_size"),
        ("of words", "many", 784, "binary_data_size"),
    )
] + [
    BadRequest("both data and binary size", 400, "both", *binary(784, image={"data": [0] * 784})),
    BadRequest("neither data nor binary size", 400, "data", text(image={"data": None})),
    BadRequest("bare bytes of half a row", 400, "bytes", bytes(392), {HEADER_LENGTH: "0"}),
    BadRequest("no bare bytes", 400, "bytes", b"", {HEADER_LENGTH: "0"}),
]

WORDS = [
    *(BadRequest(f"an input name {of}", 400, "name", text(image={"name": name})) for of, name in NAMES.items()),
    *(BadRequest(f"an output name {of}", 400, "output", text(outputs=[{"name": name}])) for of, name in NAMES.items()),
    *(
        BadRequest(f"a model name with {of}", 404, "", text(), path=f"/v2/models/{name}/infer")
        for of, name in IN_PATHS.items()
    ),
    *(
        BadRequest(
            f"version {version[:30]}", 404, "version", text(), path=f"/v2/models/fashion/versions/{version}/infer"
        )
        for version in ("7", "0", "-1", "latest", "9" * 1000, "%2e%2e")
    ),
    BadRequest("an unknown output", 400, "'logit' is not an output", text(outputs=[{"name": "logit"}])),
    BadRequest("one output twice", 400, "twice", text(outputs=[{"name": "logits"}] * 2)),
    BadRequest("one input twice", 400, "got 2, expected", json.dumps({"inputs": document()["inputs"] * 2}).encode()),
    BadRequest(
        "1,000 inputs", 413, "more values or lists", json.dumps({"inputs": document()["inputs"] * 1000}).encode()
    ),
    *(
        BadRequest(f"datatype {datatype}", 400, "datatype", text(image={"datatype": datatype}))
        for datatype in ("FP32", "INT64", "uint8", "FP8", "", 8, None)
    ),
    # BYTES are encoded pictures, one for each row.
    BadRequest("datatype BYTES", 400, "shape [1, 1, 28, 28], expected [N]", text(image={"datatype": "BYTES"})),
]

VALUES = [
    BadRequest(f"a value {name}", 400, "", first_value(value))
    for name, value in {
        "above its datatype": b"256", "below its datatype": b"-1", "with a fraction": b"0.5", "true": b"true",
        "of text": b'"7"', "null": b"null", "NaN": b"NaN", "infinite": b"1e999", "of 100,000 digits": b"1" * 100_000,
        "that is a list": b"[1]",
    }.items()
] + [
    BadRequest("one value less", 400, "783 values, expected 784", text(image={"data": [0] * 783})),
    BadRequest("a million values", 413, "more values or lists", text(image={"data": [0] * 1_000_000})),
    BadRequest("data 1,000 deep", 400, "", text(image={"data": "X"}).replace(b'"X"', b"[" * 1000 + b"]" * 1000)),
    BadRequest("ragged rows", 400, "", text(image={"data": [[[[0] * 28] * 27 + [[0] * 27]]]})),
]  # fmt: skip

HEAVY = [
    BadRequest(
        f"8 MB of {name}", 413, "more values or lists", b'{"inputs": [' + piece * (8_000_000 // len(piece)) + b"0]}"
    )
    for name, piece in (("empty lists", b"[],"), ("empty objects", b"{},"), ("numbers", b"1,"), ("texts", b'"",'))
]

BODIES = [
    BadRequest(name, 400, "", body)
    for name, body in {
        "nothing": b"", "a brace": b"{", "a number": b"7", "a list": b"[]", "null": b"null",
        "no inputs": b'{"inputs": []}',
        "UTF-16": text().decode().encode("utf-16"), "half a character": text()[:-2] + b'\xe2\x82"}',
        "a lone surrogate": text(image={"name": "X"}).replace(b'"X"', b'"\\ud800"'),
        "JSON 250,000 deep": b'{"inputs": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        "JSON 250,000 deep and not closed": b"[" * DEEP,
        "8 MB of open brackets": b"[" * 8_000_000,
        "8 MB of zeros": bytes(8_000_000),
    }.items()
]  # fmt: skip

CODINGS = [
    BadRequest("gzip that is none", 400, "body: not gzip", text(), {"Content-Encoding": "gzip"}),
    BadRequest(
        "gzip cut off", 400, "ends too early", gzip.compress(text(), mtime=0)[:-9], {"Content-Encoding": "gzip"}
    ),
    BadRequest(
        "deflate with a tail", 400, "bytes behind", zlib.compress(text()) + b"x", {"Content-Encoding": "deflate"}
    ),
    BadRequest("100 MB in 100 kB of gzip", 413, "by its own account 100000000", BOMB, {"Content-Encoding": "gzip"}),
    BadRequest("100 MB in 100 kB of deflate", 413, "when inflated", FLAT_BOMB, {"Content-Encoding": "deflate"}),
    BadRequest(
        "gzip that lies about its size",
        400,
        "not gzip",
        gzip.compress(text(), mtime=0)[:-4] + bytes(4),
        {"Content-Encoding": "gzip"},
    ),
    BadRequest("an unknown coding", 415, "expected gzip, deflate or none", text(), {"Content-Encoding": "br"}),
    BadRequest("two codings", 415, "expected gzip, deflate or none", text(), {"Content-Encoding": "gzip, gzip"}),
]

PARAMETERS = [
    BadRequest("parameters in a list", 400, "parameters", text(parameters=[1])),
    BadRequest("a parameter that is an object", 400, "parameters", text(parameters={"x": {}})),
    BadRequest("a reserved parameter", 400, "triton_", text(parameters={"triton_x": 1})),
    BadRequest("a negative timeout", 400, "timeout", text(parameters={"timeout": -1})),
    BadRequest("a sequence", 501, "sequence", text(parameters={"sequence_id": 1})),
    BadRequest("shared memory", 501, "shared", text(image={"data": None, "parameters": {"shared_memory_region": "r"}})),
    BadRequest("an identifier that is a list", 400, "id", text(id=[1])),
    *(
        BadRequest(
            f"classification {count}", 400, "classification",
            text(outputs=[{"name": "logits", "parameters": {"classification": count}}]),
        )
        for count in (-1, 10**9, "x", 1.5)
    ),
]  # fmt: skip

ROWS = [
    BadRequest(
        "a row too many", 413, f"expected at most {MAX_ROWS}",
        *binary(784 * (MAX_ROWS + 1), 784 * (MAX_ROWS + 1), image={"shape": [MAX_ROWS + 1, 1, 28, 28]}),
    ),
    BadRequest("bare bytes of a row too many", 413, "rows", bytes(784 * (MAX_ROWS + 1)), {HEADER_LENGTH: "0"}),
]  # fmt: skip

ALL = [*SHAPES, *LENGTHS, *SIZES, *WORDS, *VALUES, *HEAVY, *BODIES, *CODINGS, *PARAMETERS, *ROWS]


def grpc_cases(message_type: Any) -> dict[str, tuple[Any, str, str]]:
    """Name -> message, code and words of its sentence, for what gRPC can say too."""

    def message(shape=(1, 1, 28, 28), raw=784, outputs=(), twice=1, version="", model="fashion", **members: Any) -> Any:
        made = message_type(model_name=model, model_version=version)
        for _ in range(twice):
            made.inputs.add(**{"name": "image", "datatype": "UINT8", "shape": shape} | members)
            made.raw_input_contents.append(bytes(raw))
        for name in outputs:
            made.outputs.add(name=name)
        return made

    def with_parameter(name: str, **choice: Any) -> Any:
        made = message()
        for key, value in choice.items():
            setattr(made.parameters[name], key, value)
        return made

    both = message()
    both.inputs[0].contents.uint_contents.extend([0] * 784)
    memory = message()
    memory.inputs[0].parameters["shared_memory_region"].string_param = "r"
    invalid, missing, unknown = "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND"
    return {
        "shape of 2^60 columns": (message((1, 1, 28, 2**60)), invalid, "shape"),
        "shape whose size overflows 64 bits": (message((1, 2**32, 2**32, 2**32)), invalid, "shape"),
        "shape of 2^60 rows": (message((2**60, 1, 28, 28)), invalid, "rows, expected at most"),
        "shape with a negative size": (message((1, 1, -28, -28)), invalid, "shape"),
        "shape of no rows": (message((0, 1, 28, 28)), invalid, "shape"),
        "shape of 100,000 axes": (message([1] * 100_000), "RESOURCE_EXHAUSTED", "around its tensors"),
        "both raw and typed": (both, invalid, "both contents and raw_input_contents"),
        "raw bytes too few": (message(raw=783), invalid, "783"),
        "raw bytes too many": (message(raw=785), invalid, "785"),
        "one input twice": (message(twice=2), invalid, "got 2, expected"),
        "one output twice": (message(outputs=["logits"] * 2), invalid, "twice"),
        "an unknown output": (message(outputs=["logit"]), invalid, "'logit' is not an output"),
        "a wrong datatype": (message(datatype="FP32"), invalid, "datatype"),
        "an unknown datatype": (message(datatype="FP8"), invalid, "datatype"),
        "a row too many": (
            message((MAX_ROWS + 1, 1, 28, 28), raw=784 * (MAX_ROWS + 1)), invalid, f"expected at most {MAX_ROWS}"
        ),
        "a negative timeout": (with_parameter("timeout", int64_param=-1), invalid, "timeout"),
        "a reserved parameter": (with_parameter("triton_x", bool_param=True), invalid, "triton_"),
        "a sequence": (with_parameter("sequence_id", int64_param=1), missing, "sequence"),
        "shared memory": (memory, missing, "shared"),
        **{f"an input name {of}": (message(name=name), invalid, "name") for of, name in NAMES.items()},
        **{f"an output name {of}": (message(outputs=[name]), invalid, "output") for of, name in NAMES.items()},
        **{f"a model name {of}": (message(model=name), unknown, "is not served") for of, name in NAMES.items()},
        **{
            f"version {version[:9]}": (message(version=version), unknown, "version")
            for version in ("7", "0", "-1", "latest", "9" * 1000)
        },
    }  # fmt: skip


def right() -> tuple[bytes, np.ndarray]:
    """A request that is answered, and its input."""
    return v2_messages.request({"image": PIXELS})[0], PIXELS
