"""What a Triton folder's `config.pbtxt` says of a model, as far as it matters here.

The file of the model and of its class names, how many rows one run may have, and which versions are served are taken
from it. What would give other answers when it is left out is refused by name. Names, types and shapes stand in the
graph; when batches run, and where, is this service's own matter.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldserve.format.errors import FormatError
from foldserve.format.manifest import MODEL_FILE, regular_file
from foldserve.format.text import decoded

from ..errors import ArtifactInvalid

CONFIG_FILE = "config.pbtxt"

_LONGEST_BYTES = 1 << 20
_COMMENT = re.compile(r'("(?:[^"\\\n]|\\.)*")|#[^\n]*')
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_TEXT = r'\b{}\s*:\s*"([^"\\\n]*)"'
_ROWS = re.compile(r"\bmax_batch_size\s*:\s*([-+\w.]+)")
_POLICY = re.compile(r"\bversion_policy\s*:?\s*[{<]\s*(\w+)\s*:?\s*[{<]([^{}<>]*)[}>]\s*[}>]")
_NUMBER = re.compile(r"\d+")
_BLOCK = r"\b{}\s*:?\s*[{{<\[]"
# What would be served with other answers than Triton gives, by how it is written.
_REFUSED = {
    _BLOCK.format("reshape"): "reshapes a tensor, which is not done here: export the model with that shape",
    _BLOCK.format("ensemble_scheduling"): "is an ensemble of other models, which are not called here",
    _BLOCK.format("sequence_batching"): "keeps state from one request to the next, which is not done here",
    _BLOCK.format("batch_(?:in|out)put"): "has inputs or outputs about the whole batch, which are not made here",
    r"\ballow_ragged_batch\s*:\s*true": "has ragged batches, which are not made here",
    r"\bdecoupled\s*:\s*true": "answers a request several times or not at all, which is not done here",
}
_RUNTIMES = {"platform": ("", "onnxruntime_onnx"), "backend": ("", "onnxruntime")}


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions are served: the `newest` so many, those in `only`, or, with neither, all of them."""

    newest: int | None = None
    only: tuple[int, ...] | None = None

    def served(self, versions: Iterable[int]) -> set[int]:
        """Return those of the versions that are on disk that are served."""
        if self.only is not None:
            return set(versions) & set(self.only)
        ordered = sorted(versions, reverse=True)
        return set(ordered if self.newest is None else ordered[: self.newest])

    def as_dict(self) -> dict[str, Any]:
        """Return it as Triton writes it in JSON."""
        if self.only is not None:
            return {"specific": {"versions": list(self.only)}}
        return {"all": {}} if self.newest is None else {"latest": {"num_versions": self.newest}}


NEWEST = VersionPolicy(newest=1)  # where nothing is said


@dataclass(frozen=True)
class TritonConfig:
    """File of the model in each version folder, and the rest as it is stated, None where it is not.

    Attributes:
        model_file: name of it.
        labels: class names.
        max_batch_size: rows of one run; 0: requests are not to be joined to batches.
        version_policy: which versions are served.
    """

    model_file: str = MODEL_FILE
    labels: tuple[str, ...] | None = None
    max_batch_size: int | None = None
    version_policy: VersionPolicy | None = None


def read_config(folder: Path, root: Path) -> TritonConfig:
    """Return what the folder of a model says of its versions; the usual where it holds no configuration.

    Args:
        folder: of the model.
        root: folder of the models, within which links may lead.

    Raises:
        ArtifactInvalid: it, or the file of class names, cannot be read, or names a file elsewhere, or it asks for what
            would be left out.
    """
    path = folder / CONFIG_FILE
    if not os.path.isfile(path):  # which no damaged folder makes raise
        return TritonConfig()
    text = _COMMENT.sub(lambda match: match[1] or "", _content(path, root))
    bare = _QUOTED.sub('""', text)
    _refuse_what_is_left_out(path, text, bare)
    model_file = _file_name(path, text, "default_model_filename") or MODEL_FILE
    label_file = _file_name(path, text, "label_filename")
    labels = None
    if label_file is not None:
        lines = _content(folder / label_file, root).splitlines()
        labels = tuple(line.strip() for line in lines if line.strip())
    return TritonConfig(model_file, labels, _max_batch_size(path, bare), _version_policy(path, bare))


def read_version_policy(folder: Path, root: Path) -> VersionPolicy | None:
    """Return which versions of a model are served; None where nothing is said, or it cannot be read.

    What is wrong with it is the reason why its versions are refused.
    """
    try:
        return read_config(folder, root).version_policy
    except ArtifactInvalid:
        return None


def _refuse_what_is_left_out(path: Path, text: str, bare: str) -> None:
    for written, why in _REFUSED.items():
        if re.search(written, bare):
            raise ArtifactInvalid(f"{path} {why}")
    for key, taken in _RUNTIMES.items():
        match = re.search(_TEXT.format(key), text)
        if match and match[1] not in taken:
            raise ArtifactInvalid(f"{path}: {key} is {match[1][:80]!r}, expected {taken[-1]!r}: models are ONNX files")


def _max_batch_size(path: Path, text: str) -> int | None:
    match = _ROWS.search(text)
    if match is None:
        return None
    if not _NUMBER.fullmatch(match[1]):
        raise ArtifactInvalid(f"{path}: max_batch_size is {match[1][:40]}, expected a whole number from 0 up")
    return int(match[1])


def _version_policy(path: Path, text: str) -> VersionPolicy | None:
    if not re.search(_BLOCK.format("version_policy"), text):
        return None
    match = _POLICY.search(text)
    kind, body = (match[1], match[2]) if match else ("", "")
    numbers = [int(number) for number in _NUMBER.findall(body)]
    if kind == "all":
        return VersionPolicy()
    if kind == "latest" and len(numbers) < 2 and 0 not in numbers:
        return VersionPolicy(newest=numbers[0] if numbers else 1)
    if kind == "specific" and numbers and 0 not in numbers:
        return VersionPolicy(only=tuple(numbers))
    raise ArtifactInvalid(
        f"{path}: version_policy is not understood, expected latest {{ num_versions: 2 }}, all {{ }} or "
        "specific {{ versions: [ 1, 3 ] }}".replace("{{", "{").replace("}}", "}")
    )


def _content(path: Path, root: Path) -> str:
    try:
        with regular_file(path, root).open("rb") as file:
            content = file.read(_LONGEST_BYTES)
    except (OSError, FormatError) as err:
        raise ArtifactInvalid(f"{path} cannot be read: {err}") from err
    try:
        return decoded(content, str(path))
    except FormatError as err:
        raise ArtifactInvalid(str(err)) from err


def _file_name(path: Path, text: str, key: str) -> str | None:
    """Return the name of a file that the configuration states, which may lead nowhere else."""
    match = re.search(_TEXT.format(key), text)
    name = match[1] if match else ""
    if "/" in name or name in (".", ".."):
        raise ArtifactInvalid(f"{path}: {key} is {name[:80]!r}, expected the name of a file in its folder")
    return name or None
