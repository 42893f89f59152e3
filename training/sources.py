"""The places Fashion-MNIST's four files can come from, each with one method: `read(name)` gives the decompressed bytes.

`dataset` tries them in turn. A source trusts nothing by name, since MNIST's files are called the same: only the SHA-256
of the decompressed bytes decides. It does not parse what it reads.
"""

import gzip
import hashlib
import http.client
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Protocol

from tqdm import tqdm

from .disk import unfinished
from .errors import DatasetError

# SHA-256 of the decompressed files: the .gz around them differ between distributors.
DIGESTS: Mapping[str, str] = MappingProxyType(
    {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    }
)
MIRRORS = (
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
TORCHVISION_FOLDER = Path("FashionMNIST/raw")
TIMEOUT_SECONDS = 20  # of one connection or one silence, not of a whole download
CHUNK_BYTES = 1 << 16
LARGEST_DOWNLOAD_BYTES = 64 << 20  # the largest file has 26 MB; a page that never ends must not fill the disk


class Source(Protocol):
    """One place to look."""

    @property
    def label(self) -> str:
        """Return the place in words, for the log and for the error."""

    def read(self, name: str) -> bytes:
        """Return the decompressed bytes of `name`, digest checked, or raise `DatasetError` with the reason."""


class Folder:
    """A local folder with the files as .gz or decompressed, in it or in a torchvision layout below it."""

    def __init__(self, kind: str, path: Path, digests: Mapping[str, str] = DIGESTS) -> None:
        self.label = f"{kind} {path}"
        self.path = path
        self.digests = digests

    def read(self, name: str) -> bytes:
        """Return the first good copy of `name`; raise `DatasetError` with what is wrong with each copy otherwise."""
        folders = [self.path, self.path / TORCHVISION_FOLDER, self.path / "raw"]
        copies = [folder / file for folder in folders for file in (name, f"{name}.gz")]
        reasons = []
        for copy in copies:
            if not copy.is_file():
                continue
            try:
                return check_digest(name, unpacked(copy), self.digests)
            except DatasetError as error:
                reasons.append(str(error))
        if not self.path.is_dir():
            raise DatasetError("no such folder")
        raise DatasetError("; ".join(reasons) or f"holds no {name}.gz")


class Mirrors:
    """HTTPS servers that hold the .gz files; what they send is kept in the cache once its digest is right."""

    def __init__(
        self,
        cache: Path,
        urls: Sequence[str] = MIRRORS,
        digests: Mapping[str, str] = DIGESTS,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.label = "mirrors"
        self.cache = Folder("cache", cache, digests)
        self.urls = urls
        self.digests = digests
        self.timeout_seconds = timeout_seconds

    def read(self, name: str) -> bytes:
        """Return `name` from the cache, so that an interrupted set is completed, or from the first mirror that has it.

        Raises:
            DatasetError: no mirror gave the right bytes, or they could not be written; nothing half-written is left.
        """
        try:
            return self.cache.read(name)
        except DatasetError:
            pass  # not there yet: this is why we download
        reasons = []
        for url in self.urls:
            try:
                return self._download(f"{url}{name}.gz", name)
            except (OSError, http.client.HTTPException, ValueError, DatasetError) as error:
                reasons.append(f"{url}: {error}")
        raise DatasetError("; ".join(reasons) or "no mirror is configured")

    def _download(self, url: str, name: str) -> bytes:
        with kept(self.cache.path / f"{name}.gz") as file:
            with urllib.request.urlopen(url, timeout=self.timeout_seconds) as response:  # noqa: S310 - https by default
                copy_with_progress(response, file, name)
            file.flush()
            return check_digest(name, unpacked(Path(file.name)), self.digests)


class DebianArchive:
    """The Debian package fetched with `apt-get download` and unpacked into the cache: no root, nothing installed."""

    def __init__(
        self, cache: Path, digests: Mapping[str, str] = DIGESTS, command: Sequence[str] = ("apt-get", "download")
    ) -> None:
        self.label = f"{command[0]} download {DEBIAN_PACKAGE}"
        self.cache = Folder("cache", cache, digests)
        self.command = command

    def read(self, name: str) -> bytes:
        """Return `name` from the cache, filling the cache from the package first where it has to.

        Raises:
            DatasetError: apt is not installed, did not deliver, or the package does not hold the right bytes.
        """
        try:
            return self.cache.read(name)
        except DatasetError:
            self._fill_cache()
        return self.cache.read(name)

    def _fill_cache(self) -> None:
        if shutil.which(self.command[0]) is None:
            raise DatasetError(f"{self.command[0]} is not installed")
        try:
            self.cache.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.cache.path) as work:
                _run([*self.command, DEBIAN_PACKAGE], Path(work))
                self._keep_files(_unpack_deb(Path(work)))
        except OSError as error:
            raise DatasetError(str(error)) from error

    def _keep_files(self, root: Path) -> None:
        for name in self.cache.digests:
            packed = next(root.rglob(f"{name}.gz"), None)
            if packed is None:
                raise DatasetError(f"the package holds no {name}.gz")
            check_digest(name, unpacked(packed), self.cache.digests)
            with kept(self.cache.path / f"{name}.gz") as file:
                file.write(packed.read_bytes())


def unpacked(path: Path) -> bytes:
    """Return the content of `path`, decompressed when it is gzip by content; raise `DatasetError` when it is broken."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path.name} cannot be read: {error}") from error


def check_digest(name: str, content: bytes, digests: Mapping[str, str]) -> bytes:
    """Return `content` when its SHA-256 is that of Fashion-MNIST's `name`; raise `DatasetError` otherwise."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != digests[name]:
        raise DatasetError(
            f"{name} is not Fashion-MNIST's (SHA-256 {digest[:12]}…, expected {digests[name][:12]}…; "
            "MNIST's files have the same names)"
        )
    return content


@contextmanager
def kept(target: Path) -> Iterator[IO[bytes]]:
    """Give a temporary file beside `target` that becomes `target` when the block ends well, and vanishes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(target.parent) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(target)


def copy_with_progress(response: http.client.HTTPResponse, file: IO[bytes], name: str) -> None:
    """Copy a response into `file` with a bar on a terminal; raise `DatasetError` when it is cut short or too large."""
    announced = int(response.headers.get("Content-Length") or 0)
    copied = 0
    with tqdm(total=announced or None, desc=name, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        while chunk := response.read(CHUNK_BYTES):
            copied += len(chunk)
            if copied > LARGEST_DOWNLOAD_BYTES:
                raise DatasetError(f"{name}.gz is larger than {LARGEST_DOWNLOAD_BYTES} bytes")
            file.write(chunk)
            bar.update(len(chunk))
    if copied < announced:
        raise DatasetError(f"{name}.gz ended after {copied} of {announced} bytes")


def _unpack_deb(work: Path) -> Path:
    archive = next(work.glob("*.deb"), None)
    if archive is None:
        raise DatasetError("the download left no .deb file")
    root = work / "root"
    root.mkdir()
    if shutil.which("dpkg-deb"):
        _run(["dpkg-deb", "-x", str(archive), str(root)], work)
    else:
        _run(["ar", "x", str(archive)], work)
        _run(["tar", "-xf", str(next(work.glob("data.tar*"))), "-C", str(root)], work)
    return root


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise DatasetError(f"{command[0]} did not end within 300 s") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise DatasetError(f"{command[0]} ended with {done.returncode}: {last}")
