"""Where the data is looked for, what decides that it is the data, and what is left behind when it is not.

The files here are tiny and made up, with their own digests; downloads come from a real server on this machine.
"""

import gzip
import hashlib
import http.server
import io
import resource
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from foldserve.training.dataset import (
    CLASS_NAMES,
    cache_folder,
    default_sources,
    load,
    load_from,
    read_idx,
    scale_pixels,
)
from foldserve.training.errors import DatasetError
from foldserve.training.sources import (
    DEBIAN_FOLDER,
    DEBIAN_PACKAGE,
    DIGESTS,
    DebianArchive,
    Folder,
    Mirrors,
    check_digest,
)


def idx(array):
    """Return the IDX file of a uint8 array."""
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes()


def made_up_files(seed):
    """Return four small files under the real names."""
    generator = np.random.default_rng(seed)
    return {
        f"{part}-{kind}": idx(generator.integers(0, high, (rows, *shape), dtype=np.uint8))
        for part, rows in (("train", 20), ("t10k", 6))
        for kind, high, shape in (("images-idx3-ubyte", 256, (28, 28)), ("labels-idx1-ubyte", 10, ()))
    }


FILES = made_up_files(seed=0)
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


def write(folder, files=FILES, *, compressed=True):
    """Write the files into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (f"{name}.gz" if compressed else name)).write_bytes(gzip.compress(content) if compressed else content)
    return folder


@contextmanager
def serving(folder, *, cut=None):
    """Serve `folder` on a free port and yield (url, list of paths asked for); `cut` ends every body that early."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def copyfile(self, source, outputfile):
            outputfile.write(source.read(cut) if cut else source.read())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", asked
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def full_disk(limit_bytes=64):
    """Let every write beyond `limit_bytes` of a file fail with a real OSError, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("layout", [".", "FashionMNIST/raw", "raw"])
def test_folder_is_read_in_every_layout(tmp_path, compressed, layout):
    """Gzip or not, flat or as torchvision leaves it: the arrays are the ones that were written."""
    write(tmp_path / layout, compressed=compressed)
    data = load_from([Folder("--data-dir", tmp_path, SHA256)], SHA256)
    assert data.train_images.shape == (20, 1, 28, 28)
    assert data.train_images.dtype == np.uint8
    assert data.test_labels.dtype == np.int64
    assert data.train_images.tobytes() == FILES["train-images-idx3-ubyte"][16:]
    assert data.digests == SHA256
    assert data.source == f"--data-dir {tmp_path}"
    torch.from_numpy(data.train_images)  # writable: PyTorch would warn otherwise


def test_first_place_with_good_data_wins(tmp_path):
    """A broken place is passed over, and the places behind the good one are not asked."""
    write(tmp_path / "bad", made_up_files(seed=1))
    write(tmp_path / "good")
    places = [Folder(name, tmp_path / name, SHA256) for name in ("absent", "bad", "good", "never")]
    assert load_from(places, SHA256).source.startswith("good ")


def test_other_data_under_the_same_names_is_refused(tmp_path):
    """MNIST's files are called the same: only the digest of the content tells."""
    write(tmp_path, made_up_files(seed=1))
    with pytest.raises(DatasetError, match=r"is not Fashion-MNIST's.*MNIST's files have the same names"):
        load(tmp_path)


def test_truncated_gz_is_refused(tmp_path):
    """Half a file is named as such, not decoded as far as it goes."""
    write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        load_from([Folder("--data-dir", tmp_path, SHA256)], SHA256)


def test_broken_copy_does_not_hide_a_good_one(tmp_path):
    """A bad decompressed file beside a good .gz is passed over."""
    write(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"not labels")
    assert load_from([Folder("cache", tmp_path, SHA256)], SHA256).train_labels.shape == (20,)


def test_named_folder_is_the_only_place(tmp_path, monkeypatch):
    """Data asked for by folder is never replaced by data from elsewhere, whether named by flag or environment."""
    with pytest.raises(DatasetError) as by_flag:
        load(tmp_path / "nowhere")
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path))
    with pytest.raises(DatasetError) as by_environment:
        load()
    assert f"--data-dir {tmp_path / 'nowhere'}: no such folder" in str(by_flag.value)
    assert f"FASHION_MNIST_DIR {tmp_path}: holds no " in str(by_environment.value)
    assert "mirrors" not in str(by_environment.value)


def test_places_are_asked_in_the_documented_order(tmp_path, monkeypatch):
    """Cache, Debian, torchvision, mirrors, apt; without downloads the last two are left out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    labels = [source.label for source in default_sources()]
    assert [label.split()[0] for label in labels] == ["cache", "Debian's", "torchvision", "mirrors", "apt-get"]
    assert len(default_sources(download=False)) == 3


def test_cache_follows_the_environment(tmp_path, monkeypatch):
    """XDG_CACHE_HOME alone decides, ~/.cache without it."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/foldserve/fashion-mnist"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/foldserve/fashion-mnist"


def test_error_lists_every_place_with_its_reason(tmp_path):
    """Someone offline reads one message and knows all that was tried."""
    write(tmp_path / "other", made_up_files(seed=1))
    places = [
        Folder("cache", tmp_path / "absent", SHA256),
        Folder("Debian's", tmp_path / "other", SHA256),
        Mirrors(tmp_path / "cache", ["http://127.0.0.1:9/"], SHA256),
        DebianArchive(tmp_path / "cache", SHA256, command=("no-such-apt", "download")),
    ]
    with pytest.raises(DatasetError) as error:
        load_from(places, SHA256)
    lines = str(error.value).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["cache", "Debian's", "mirrors:", "no-such-apt"]
    for line, reason in zip(lines[1:5], ["no such folder", "is not Fashion", "refused", "not installed"], strict=True):
        assert reason in line
    assert "--data-dir" in lines[-1]


def test_download_is_kept_and_not_repeated(tmp_path):
    """Each file is fetched once; the next run finds it in the cache without a server."""
    with serving(write(tmp_path / "server")) as (url, asked):
        mirrors = Mirrors(tmp_path / "cache", [url], SHA256)
        first = load_from([mirrors], SHA256)
        load_from([mirrors], SHA256)
    assert sorted(asked) == sorted(f"/{name}.gz" for name in FILES)
    cached = load_from([Folder("cache", tmp_path / "cache", SHA256)], SHA256)
    assert np.array_equal(first.train_images, cached.train_images)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(f"{name}.gz" for name in FILES)


def test_next_mirror_answers_when_one_has_the_wrong_bytes(tmp_path):
    """A mirror that serves MNIST, or an error page, or half a file, is passed over and leaves nothing behind."""
    wrong = write(tmp_path / "wrong", made_up_files(seed=1))
    right = write(tmp_path / "right")
    (tmp_path / "empty").mkdir()
    with (
        serving(tmp_path / "empty") as (absent, _),
        serving(wrong) as (mnist, _),
        serving(right, cut=40) as (half, _),
        serving(right) as (good, _),
    ):
        data = load_from([Mirrors(tmp_path / "cache", [absent, mnist, half, good], SHA256)], SHA256)
    assert data.train_images.tobytes() == FILES["train-images-idx3-ubyte"][16:]
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_failed_download_says_why_for_each_mirror_and_leaves_nothing(tmp_path):
    """404, wrong content and a cut connection are three different reasons."""
    wrong, right = write(tmp_path / "wrong", made_up_files(seed=1)), write(tmp_path / "right")
    (tmp_path / "empty").mkdir()
    with (
        serving(tmp_path / "empty") as (absent, _),
        serving(wrong) as (mnist, _),
        serving(right, cut=40) as (half, _),
        pytest.raises(DatasetError) as error,
    ):
        load_from([Mirrors(tmp_path / "cache", [absent, mnist, half], SHA256)], SHA256)
    for reason in (f"{absent}: HTTP Error 404", f"{mnist}: train-images", f"{half}: ", "ended after 40 of"):
        assert reason in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_full_disk_is_said_and_leaves_no_half_file(tmp_path):
    """The write fails in earnest; the reason is in the message and the cache stays empty."""
    with serving(write(tmp_path / "server")) as (url, _), full_disk(), pytest.raises(DatasetError, match="too large"):
        load_from([Mirrors(tmp_path / "cache", [url], SHA256)], SHA256)
    assert list((tmp_path / "cache").iterdir()) == []


def test_silent_mirror_times_out(tmp_path):
    """A server that accepts and says nothing costs the timeout, not the training."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        mirrors = Mirrors(tmp_path, [f"http://127.0.0.1:{listener.getsockname()[1]}/"], SHA256, timeout_seconds=0.05)
        with pytest.raises(DatasetError, match="timed out"):
            mirrors.read("train-labels-idx1-ubyte")


def package(folder, files):
    """Build a real .deb that installs `files` where Debian's package does, and return it."""
    write(folder / "root" / DEBIAN_FOLDER.relative_to("/"), files)
    control = folder / "root/DEBIAN/control"
    control.parent.mkdir()
    control.write_text(
        f"Package: {DEBIAN_PACKAGE}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@o>\nDescription: test\n"
    )
    target = folder / f"{DEBIAN_PACKAGE}_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", "-Zgzip", folder / "root", target], check=True, capture_output=True)
    return target


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb to build the package it reads")


@needs_dpkg
def test_debian_package_is_unpacked_into_the_cache(tmp_path):
    """Fetched, unpacked without root, checked and kept; nothing of the package is left beside the four files."""
    deb = package(tmp_path, FILES)
    fetch = ("sh", "-c", f"cp {deb} .")  # stands where `apt-get download` stands; runs in the same folder
    source = DebianArchive(tmp_path / "cache", SHA256, command=fetch)
    assert load_from([source], SHA256).train_labels.shape == (20,)
    assert len(list((tmp_path / "cache").iterdir())) == 4


@needs_dpkg
def test_debian_package_with_other_data_is_refused(tmp_path):
    """A package is believed no more than a mirror."""
    deb = package(tmp_path, made_up_files(seed=1))
    source = DebianArchive(tmp_path / "cache", SHA256, command=("sh", "-c", f"cp {deb} ."))
    with pytest.raises(DatasetError, match="is not Fashion-MNIST's"):
        load_from([source], SHA256)
    assert list((tmp_path / "cache").iterdir()) == []


def test_failing_apt_is_quoted(tmp_path):
    """The last line that apt wrote is the reason."""
    source = DebianArchive(tmp_path / "cache", SHA256, command=("sh", "-c", "echo E: no lists >&2; exit 100"))
    with pytest.raises(DatasetError, match="sh ended with 100: E: no lists"):
        source.read("train-labels-idx1-ubyte")


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x09\x01\0\0\0\0", b"\0\0\x08\x01\0\0\0\x05abc", b"\0\0\x08\x02\0\0\0\x05"]
)
def test_malformed_idx_is_refused(content):
    """Too short, another type, or a length that disagrees with the header."""
    with pytest.raises(DatasetError, match="IDX"):
        read_idx(content)


def test_pixels_become_float32_from_zero_to_one():
    """The one place that scales: byte / 255, rounded once."""
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = (np.arange(256, dtype=np.float64) / 255).astype(np.float32)
    assert np.array_equal(scale_pixels(images).flatten().numpy(), expected)
    assert images.dtype == torch.uint8


def test_ten_classes_are_named_once_each():
    """The position of a name is its class id."""
    assert len(set(CLASS_NAMES)) == 10
    assert (CLASS_NAMES[0], CLASS_NAMES[9]) == ("T-shirt/top", "Ankle boot")


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_real_data_is_accepted():
    """Debian's copies carry the published digests, 6,000 images of each class."""
    data = load(DEBIAN_FOLDER)
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert np.bincount(data.train_labels).tolist() == [6000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    assert data.digests == dict(DIGESTS)


def test_check_digest_accepts_exactly_the_right_bytes():
    """One changed byte is another file."""
    name, content = next(iter(FILES.items()))
    assert check_digest(name, content, SHA256) is content
    with pytest.raises(DatasetError):
        check_digest(name, content[:-1] + bytes([content[-1] ^ 1]), SHA256)


def test_gzip_header_does_not_matter():
    """The same content compressed with a file name in the header has another .gz digest and is accepted."""
    name, content = next(iter(FILES.items()))
    named, plain = io.BytesIO(), gzip.compress(content, mtime=0)
    with gzip.GzipFile(filename=name, mode="wb", fileobj=named) as file:
        file.write(content)
    assert named.getvalue() != plain
    assert check_digest(name, gzip.decompress(named.getvalue()), SHA256) == gzip.decompress(plain)
