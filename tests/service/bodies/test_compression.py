"""Compressed bodies: what may come out is limited by itself, and for what was sent."""

import gzip
import random
import zlib

import pytest

from foldserve.service.bodies.compression import inflate
from foldserve.service.errors import BodyTooLarge

MIB = 1024 * 1024
CODINGS = pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)], ids=["gzip", "deflate"]
)


@CODINGS
def test_a_long_body_that_inflates_out_of_all_proportion_is_refused(coding, compress):
    """A hundred megabytes in a hundred kilobytes stop at two hundred times what was sent, below the limit of a body."""
    body = compress(bytes(100 * MIB))
    with pytest.raises(BodyTooLarge, match=rf"expected at most {200 * len(body)} for {len(body)} compressed ones"):
        inflate(body, coding, 1024 * MIB)


@CODINGS
def test_black_pictures_of_eight_mebibytes_inflate_whatever_their_ratio(coding, compress):
    """A batch of zeros is squeezed a thousandfold and is no attack; a byte more than eight mebibytes of it is one."""
    assert inflate(compress(bytes(8 * MIB)), coding, 64 * MIB) == bytes(8 * MIB)
    with pytest.raises(BodyTooLarge, match="send it as it is"):
        inflate(compress(bytes(8 * MIB + 1)), coding, 64 * MIB)


@CODINGS
def test_a_long_body_of_numbers_inflates_up_to_the_limit(coding, compress):
    """Values that were measured are squeezed a few times: only the limit of a body counts."""
    text = random.Random(1).randbytes(5 * MIB).hex().encode()
    assert inflate(compress(text), coding, len(text)) == text
    with pytest.raises(BodyTooLarge, match=f"expected at most {len(text) - 1}$"):
        inflate(compress(text), coding, len(text) - 1)
