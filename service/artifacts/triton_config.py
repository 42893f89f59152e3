"""What a Triton folder's `config.pbtxt` says of a model without a manifest, as far as it matters here.

The file of the model and the file of its class names are taken from it; a reshape, which would give other answers when
it is left out, is refused. Names, types and shapes stand in the graph, and batches are this service's own matter.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from foldserve.format.errors import FormatError
from foldserve.format.manifest import MODEL_FILE, regular_file

from ..errors import ArtifactInvalid

CONFIG_FILE = "config.pbtxt"

_LONGEST_BYTES = 1 << 20
_COMMENT = re.compile(r'("(?:[^"\\\n]|\\.)*")|#[^\n]*')
_TEXT = r'\b{}\s*:\s*"([^"\\\n]*)"'
_RESHAPE = re.compile(r"\breshape\s*:?\s*\{")


@dataclass(frozen=True)
class TritonConfig:
    """File of the model in each version folder, and the class names; None where none are stated."""

    model_file: str = MODEL_FILE
    labels: tuple[str, ...] | None = None


def read_config(folder: Path, root: Path) -> TritonConfig:
    """Return what the folder of a model says of its versions; the usual where it holds no configuration.

    Args:
        folder: of the model.
        root: folder of the models, within which links may lead.

    Raises:
        ArtifactInvalid: it, or the file of class names, cannot be read, or names a file elsewhere, or it reshapes.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return TritonConfig()
    text = _COMMENT.sub(lambda match: match[1] or "", _content(path, root))
    if _RESHAPE.search(text):
        raise ArtifactInvalid(f"{path} reshapes a tensor, which is not done here: export the model with that shape")
    model_file = _file_name(path, text, "default_model_filename") or MODEL_FILE
    label_file = _file_name(path, text, "label_filename")
    if label_file is None:
        return TritonConfig(model_file)
    lines = _content(folder / label_file, root).splitlines()
    return TritonConfig(model_file, tuple(line.strip() for line in lines if line.strip()))


def _content(path: Path, root: Path) -> str:
    try:
        with regular_file(path, root).open("rb") as file:
            return file.read(_LONGEST_BYTES).decode()
    except (OSError, ValueError, FormatError) as err:
        raise ArtifactInvalid(f"{path} cannot be read: {err}") from err


def _file_name(path: Path, text: str, key: str) -> str | None:
    """Return the name of a file that the configuration states, which may lead nowhere else."""
    match = re.search(_TEXT.format(key), text)
    name = match[1] if match else ""
    if "/" in name or name in (".", ".."):
        raise ArtifactInvalid(f"{path}: {key} is {name[:80]!r}, expected the name of a file in its folder")
    return name or None
