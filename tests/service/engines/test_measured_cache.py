"""What was measured, kept in files: found again under the same circumstances, and never needed."""

import math
from pathlib import Path

import pytest

from foldserve.service.engines.measured import Measured
from foldserve.service.engines.measured_cache import MeasuredCache, processor_of

SHA = "ab" * 32
KNOWN = Measured("pools split", 4, {1: 1e-3, 4: 2e-3})
OPTIONS = {"threads": 0, "cores": 2, "buckets": (1, 4)}


def cache(folder: Path | None, processor: str = "a", **options) -> MeasuredCache:
    return MeasuredCache(folder, OPTIONS | options, processor)


def test_what_was_kept_is_found_again_under_the_same_circumstances(tmp_path):
    """Another file, processor, quota or setting is measured anew."""
    cache(tmp_path).put(SHA, KNOWN)
    assert cache(tmp_path).get(SHA, (1, 4)) == KNOWN
    others = [cache(tmp_path, "b"), cache(tmp_path, cores=1), cache(tmp_path, threads=2), cache(tmp_path, more=1)]
    assert [other.get(SHA, (1, 4)) for other in others] == [None] * 4
    assert cache(tmp_path).get("cd" * 32, (1, 4)) is None
    assert cache(tmp_path).get(SHA, (1, 2)) is None


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b'{"rewrite": null}', b"x" * 100_000,
        *(
            b'{"rewrite": %b, "threaded_from": %b, "seconds": %b}' % parts
            for parts in (
                (b"null", b"null", b"{}"), (b"null", b"2", b'{"1": 0.1}'), (b"3", b"null", b'{"1": 0.1}'),
                (b"null", b"null", b'{"0": 0.1}'), (b"null", b"null", b'{"4": 0.1, "1": 0.1}'),
                (b"null", b"null", b'{"1": -1}'), (b"null", b"null", b'{"1": NaN}'), (b"null", b"null", b'{"1": "x"}'),
                (b"null", b"null", b'{"1": Infinity}'), (b"null", b"null", b'{"1": null}'), (b"null", b"null", b"[1]"),
            )
        ),
    ],
)  # fmt: skip
def test_a_damaged_file_is_as_none(tmp_path, content):
    """Whatever is in it; the next measurement takes its place."""
    kept = cache(tmp_path)
    kept.put(SHA, KNOWN)
    (file,) = (tmp_path / "measured").iterdir()
    file.write_bytes(content)
    assert kept.get(SHA, (1, 4)) is None
    kept.put(SHA, KNOWN)
    assert kept.get(SHA, (1, 4)) == KNOWN


def test_what_cannot_be_kept_is_measured_again(tmp_path):
    """No state folder, one that is gone, which must not be made anew, or a file in its place."""
    cache(None).put(SHA, KNOWN)
    assert cache(None).get(SHA, (1, 4)) is None
    gone = cache(tmp_path / "gone")
    gone.put(SHA, KNOWN)
    assert gone.get(SHA, (1, 4)) is None
    assert not (tmp_path / "gone").exists()
    (tmp_path / "measured").write_text("")
    cache(tmp_path).put(SHA, KNOWN)
    assert cache(tmp_path).get(SHA, (1, 4)) is None


def test_the_folder_does_not_grow_without_end(tmp_path, monkeypatch):
    """The oldest files make room."""
    monkeypatch.setattr("foldserve.service.engines.measured_cache._MOST_FILES", 3)
    for number in range(6):
        cache(tmp_path).put(f"{number:064x}", KNOWN)
    assert len(list((tmp_path / "measured").iterdir())) == 3
    assert cache(tmp_path).get(f"{5:064x}", (1, 4)) == KNOWN


def test_a_processor_is_known_by_model_and_instructions(tmp_path):
    """Not by what changes from moment to moment; an unreadable description is an empty one."""
    text = "vendor_id\t: A\nmodel name\t: M\ncpu MHz\t\t: %s\nflags\t\t: avx %s\n\nvendor_id\t: A\n"
    (tmp_path / "one").write_text(text % ("1", ""))
    (tmp_path / "two").write_text(text % ("2", ""))
    (tmp_path / "three").write_text(text % ("1", "avx512f"))
    one, two, three = (processor_of(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two != three
    assert processor_of(tmp_path / "none") == ""


def test_a_text_says_the_same_as_what_it_was_made_of():
    """There and back; seconds are exact."""
    assert Measured.from_json(KNOWN.to_json()) == KNOWN
    plain = Measured(None, None, {1: math.pi})
    assert Measured.from_json(plain.to_json()) == plain
