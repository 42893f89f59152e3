"""What of a message is remembered: only what protobuf itself says stands before its rows."""

import pytest

from tests.support import artifacts

pytest.importorskip("grpc", reason="needs the extra grpc")

from foldserve.service.lane.rpc.messages import _ends_with_its_rows
from foldserve.service.v2.rpc.wire import split_request
from tests.support.grpc_calls import MESSAGES, request

ROWS = artifacts.images(1)
USUAL = request(inputs={"image": ROWS}).SerializeToString()


def test_rows_at_the_end_of_a_message_are_found():
    """As every library of protobuf writes it."""
    assert _ends_with_its_rows(USUAL, split_request(USUAL))


@pytest.mark.parametrize(
    "data",
    [
        USUAL + b"\x1a\x04same",  # an id behind the rows
        USUAL[: -ROWS.size - 3] + b"\x3a\x04same\x1a\x04same",  # an id behind the rows, and the same bytes
        USUAL[: -ROWS.size - 3] + b"\x3a\x00",  # no rows
    ],
)
def test_rows_elsewhere_are_not(data):
    """Equal bytes at the end are not enough: other bytes in their place have to become the rows."""
    message = split_request(data)
    assert MESSAGES["ModelInferRequest"].FromString(data).raw_input_contents[0] == bytes(message.raw[0])
    assert not _ends_with_its_rows(data, message)
