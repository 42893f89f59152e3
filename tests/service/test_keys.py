"""The keys file while it changes: what counts as a whole one, and what locks nobody out."""

import hashlib
import os
import threading
import time
from collections.abc import Iterator

import pytest

from foldserve.service.access import Access
from foldserve.service.audit import RefusedKeys
from foldserve.service.errors import ArtifactInvalid, Forbidden, InvalidInput, Unauthorized
from foldserve.service.keys import LOOK_SECONDS, KeysFile, new_key, read_keys, revoke_key
from foldserve.service.metrics import Metrics
from foldserve.service.models_cli import main
from foldserve.service.request_context import Caller

OLD, OLD_LINE = new_key("old", ["infer"])
NEW, NEW_LINE = new_key("new", ["infer"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes when a test says so."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


class Watched:
    """A keys file, and looks at it in the service's own rhythm."""

    def __init__(self, path, clock: list[float], *lines: str) -> None:
        self.path, self.clock = path, clock
        self.write(*lines)
        self.keys = KeysFile(path)

    def write(self, *lines: str) -> None:
        self.path.write_text("\n".join(lines))

    def look_for(self, seconds: float) -> list[str]:
        """The names that are known after a time."""
        for _ in range(round(seconds / LOOK_SECONDS)):
            self.clock[0] += LOOK_SECONDS
            self.keys.look()
        return [key.name for key in self.keys.keys]


def test_keys_come_and_go_while_the_service_runs(tmp_path, clock):
    """Given out, rotated and taken back without a restart."""
    watched = Watched(tmp_path / "keys", clock, OLD_LINE)
    watched.write(OLD_LINE, NEW_LINE)
    assert watched.look_for(0.5) == ["old", "new"]
    watched.write(NEW_LINE)
    assert watched.look_for(1) == ["new"]


@pytest.mark.parametrize(
    "between",
    [
        "", "\n\n", "# people\n", OLD_LINE[:40], OLD_LINE[:-1], OLD_LINE + "\n", OLD_LINE + "\n" + NEW_LINE[:60],
        "nonsense", "\0" * 50, "# revok",
    ],
    ids=range(10),
)  # fmt: skip
def test_a_file_that_is_written_again_in_pieces_locks_nobody_out(tmp_path, clock, between):
    """Half a second with the beginning of the file alone, or with nothing: both keys open all the time."""
    watched = Watched(tmp_path / "keys", clock, OLD_LINE, NEW_LINE)
    for _ in range(3):
        watched.path.write_text(between)
        assert watched.look_for(0.5) == ["old", "new"]
        watched.write(OLD_LINE, NEW_LINE)
        assert watched.look_for(1) == ["old", "new"]


@pytest.mark.parametrize("text", ["", "\n", "# all gone\n", "nonsense"])
def test_an_emptied_or_damaged_file_takes_no_key_back(tmp_path, clock, caplog, text):
    """However long it stays so; the log says it once, and how keys are taken back."""
    watched = Watched(tmp_path / "keys", clock, OLD_LINE)
    watched.path.write_text(text)
    assert watched.look_for(60) == ["old"]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "stay as they were" in lines[0]
    watched.path.unlink()
    assert watched.look_for(60) == ["old"]
    assert len(caplog.records) == 2


def test_revoking_takes_keys_back_also_the_last_one(tmp_path, clock, capsys):
    """In one step, with the file's own permissions; the comment that stays makes the empty file a whole one."""
    watched = Watched(tmp_path / "keys", clock, "# people", OLD_LINE, NEW_LINE, OLD_LINE)
    watched.path.chmod(0o640)
    assert revoke_key(watched.path, "old") == 2
    assert watched.look_for(1) == ["new"]
    assert main(["keys", "revoke", "--name", "new", "--file", str(watched.path)]) == 0
    assert watched.look_for(1) == []
    assert watched.path.stat().st_mode & 0o777 == 0o640
    assert read_keys(watched.path) == ()
    assert "# people" in watched.path.read_text()
    with pytest.raises(InvalidInput, match="holds no key 'new'"):
        revoke_key(watched.path, "new")
    assert main(["keys", "revoke", "--name", "new", "--file", str(watched.path)]) == 1
    assert os.listdir(tmp_path) == ["keys"]


def test_a_change_of_the_same_size_and_time_is_noticed(tmp_path, clock):
    """As `cp -p` and `rsync -t` leave a rotated key, in the same file or in another."""
    watched = Watched(tmp_path / "keys", clock, OLD_LINE)
    status = watched.path.stat()
    rotated = OLD_LINE.replace(OLD_LINE.split()[2], hashlib.sha256(b"other").hexdigest())
    watched.write(rotated)
    os.utime(watched.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert watched.look_for(1) == ["old"]
    assert watched.keys.keys[0].digest == hashlib.sha256(b"other").digest()


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "missing"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    """A pipe would be read once and hold up the start; it ends in a sentence instead."""
    path = tmp_path / "keys"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(ArtifactInvalid, match="cannot be read"):
        KeysFile(path)


def test_a_link_is_followed(tmp_path, clock):
    """Clusters mount secrets behind a link that they turn to another folder."""
    for name, line in (("a", OLD_LINE), ("b", NEW_LINE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(line)
    (tmp_path / "data").symlink_to("a")
    keys = KeysFile(tmp_path / "data/keys")
    (tmp_path / "next").symlink_to("b")
    (tmp_path / "next").rename(tmp_path / "data")
    for _ in range(5):
        clock[0] += LOOK_SECONDS
        keys.look()
    assert [key.name for key in keys.keys] == ["new"]


@pytest.fixture
def followed(tmp_path) -> Iterator[tuple[Access, Metrics]]:
    """The checks of a service that runs, with what they count."""
    (tmp_path / "keys").write_text(OLD_LINE)
    metrics = Metrics()
    access = Access(tmp_path / "keys", metrics=metrics)
    access.follow()
    yield access, metrics
    access.close()


def test_a_service_that_runs_follows_the_file_by_itself(followed, tmp_path, caplog):
    """No request has to come for it, a reload is as careful as any look, and each change is audited."""
    caplog.set_level("INFO", "foldserve.audit")
    access, _ = followed
    (tmp_path / "keys").write_text(NEW_LINE)
    access.reload()
    until = time.monotonic() + 20
    while access.file.keys[0].name != "new" and time.monotonic() < until:
        threading.Event().wait(0.02)
    assert access.check("infer", None, NEW) == "new"
    with pytest.raises(Unauthorized):
        access.check("infer", None, OLD)
    lines = [(line.action, line.key, line.result) for line in caplog.records if line.getMessage() == "audit"]
    assert lines == [("key-added", "new", "done"), ("key-removed", "old", "done")]


def test_refused_keys_are_counted_by_reason(followed):
    """One series a reason, none of what a client sent."""
    access, metrics = followed
    for key in (None, "guess", "guess-2", OLD):
        with pytest.raises((Unauthorized, Forbidden)):
            access.check("metrics", None, key, "'/metrics'", "10.0.0.7")
    counted = {
        reason: metrics.registry.get_sample_value("foldserve_refused_keys_total", {"reason": reason})
        for reason in ("missing", "unknown", "scope")
    }
    assert counted == {"missing": 1, "unknown": 2, "scope": 1}


def test_guesses_are_logged_with_their_address_and_rationed(clock, caplog):
    """The first at once; a thousand more in a second share one line, which comes when the second is over."""
    refused = RefusedKeys()
    for number in range(1000):
        refused.note("unknown", Caller(None, f"10.0.0.{number % 5}"), "'/predict'")
    assert [record.getMessage() for record in caplog.records] == ["API key refused"]
    assert (caplog.records[0].address, caplog.records[0].reason) == ("10.0.0.0", "unknown")
    clock[0] += 1.5
    refused.write_rest()
    refused.write_rest()
    assert len(caplog.records) == 2
    assert caplog.records[1].count == 999
    assert sorted(caplog.records[1].addresses) == [f"10.0.0.{number}" for number in range(5)]


def test_a_new_key_goes_into_the_keys_file_by_itself(tmp_path, capsys):
    """The file is made for its owner alone; what stands in one stays, its mode too, and a broken one is not touched."""
    path = tmp_path / "keys"
    given = []
    for name in ("first", "second"):
        assert main(["keys", "new", "--name", name, "--scopes", "infer,read", "--file", str(path)]) == 0
        given.append(capsys.readouterr().out)
        assert path.stat().st_mode & 0o777 == 0o600
    assert [key.name for key in read_keys(path)] == ["first", "second"]
    for key, said in zip(read_keys(path), given, strict=True):
        assert key.digest == hashlib.sha256(said.strip().encode()).digest()
        assert said.count("\n") == 1
    path.write_text(path.read_text().rstrip("\n"))
    path.chmod(0o640)
    assert main(["keys", "new", "--name", "third", "--scopes", "admin", "--file", str(path)]) == 0
    assert [key.name for key in read_keys(path)] == ["first", "second", "third"]
    assert path.stat().st_mode & 0o777 == 0o640
    path.write_text("no key's line\n")
    capsys.readouterr()
    assert main(["keys", "new", "--name", "fourth", "--scopes", "admin", "--file", str(path)]) == 1
    assert "line 1" in capsys.readouterr().err
    assert main(["keys", "new", "--name", "fifth", "--scopes", "admin", "--file", str(tmp_path / "none/keys")]) == 1
    assert path.read_text() == "no key's line\n"
    assert os.listdir(tmp_path) == ["keys"]
