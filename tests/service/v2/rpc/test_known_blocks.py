"""Which blocks of headers change what a connection remembers, by the examples of RFC 7541, appendix C."""

import pytest

pytest.importorskip("grpc", reason="needs the extra grpc")

from foldserve.service.v2.rpc.known_blocks import KnownBlocks, keeps_table

CUSTOM = bytes.fromhex("400a637573746f6d2d6b65790d637573746f6d2d686561646572")  # C.2.1, with incremental indexing
PATH = bytes.fromhex("040c2f73616d706c652f70617468")  # C.2.2, without indexing
PASSWORD = bytes.fromhex("100870617373776f726406736563726574")  # C.2.3, never indexed
METHOD = bytes.fromhex("82")  # C.2.4, indexed
HUFFMAN = bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff")  # C.4.1, its host with incremental indexing


@pytest.mark.parametrize(
    "block", [PATH, PASSWORD, METHOD, PATH + METHOD + PASSWORD, b"", b"\x00\x01a\x7f\x01" + b"x" * 128]
)
def test_blocks_that_change_nothing(block):
    """Indexed fields, and literals that nobody remembers."""
    assert keeps_table(block)


@pytest.mark.parametrize(
    "block",
    [
        CUSTOM, HUFFMAN, METHOD + CUSTOM, b"\x20", b"\x3f\xe1\x1f", PATH[:-1], PASSWORD[:3], b"\xff", b"\x7f\xff\xff",
        b"\x0f",
    ],
)  # fmt: skip
def test_blocks_that_change_something_or_are_none(block):
    """A field that is remembered, another size of the table, or bytes that end too early."""
    assert not keeps_table(block)


def test_what_a_block_means_is_told_once_and_without_the_mark():
    """Metadata with a mark that was not given mean nothing."""
    blocks, told = KnownBlocks(), []
    mark = blocks.mark(lambda *args: told.append(args))
    name, value = mark[2 : 2 + mark[1]].decode(), mark[3 + mark[1] :].decode()
    blocks.tell("/a/b", [("x", "1"), (name, "77")], None)
    blocks.tell("/a/b", [("x", "1"), (name, value)], 2.0)
    blocks.tell("/a/b", [("x", "1"), (name, value)], 2.0)
    assert told == [("/a/b", [("x", "1")], 2.0)]
    assert len(mark) < KnownBlocks.MARK_BYTES
