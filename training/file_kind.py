"""What a file is by its first bytes, for the sentence that says why it is not what was expected.

Knows the formats that people have in the place of an ONNX file or of weights, and what turns each into one of these.
"""

import zipfile
from pathlib import Path

_FROM_KERAS = "export the network to ONNX, such as with tf2onnx.convert.from_keras"
_BY_START = (
    (b"version https://git-lfs", "a pointer of Git LFS; get the file itself with `git lfs pull`"),
    (b"\x89HDF\r\n\x1a\n", f"an HDF5 file, such as Keras writes; {_FROM_KERAS}"),
    (b"GGUF", "a GGUF file, whose networks are none of those that are served here"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"\x80\x02", "a pickle, such as torch.save and joblib write, which is never run here"),
    (b"\x80\x03", "a pickle, such as torch.save and joblib write, which is never run here"),
    (b"\x80\x04", "a pickle, such as torch.save and joblib write, which is never run here"),
    (b"\x80\x05", "a pickle, such as torch.save and joblib write, which is never run here"),
    (b"<", "a page of HTML or XML; was a message saved in the place of the file?"),
)
_READ = 64


def kind_of(path: Path) -> str | None:
    """Return what a file or folder is and what helps, to stand behind "it is "; None where nothing is known of it."""
    if path.is_dir():
        return _kind_of_folder(path)
    with path.open("rb") as file:
        start = file.read(_READ)
    if not start:
        return "empty"
    if start[4:8] == b"TFL3":
        return "a TensorFlow Lite file; export it with `python -m tf2onnx.convert --tflite`"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        return "a safetensors file: weights, without a network"
    if start.startswith(b"PK"):
        return _kind_of_zip(path)
    return next((kind for begin, kind in _BY_START if start.lstrip().startswith(begin)), None)


def _kind_of_folder(path: Path) -> str | None:
    if (path / "saved_model.pb").is_file():
        return f"a SavedModel of TensorFlow; export it with `python -m tf2onnx.convert --saved-model {path}`"
    for inside in sorted(path.glob("*.onnx")):
        return f"a folder; the file in it is {inside}"
    return None


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError):
        return "the beginning of a zip archive, cut off or damaged"
    if "model.weights.h5" in names:
        return f"an archive of Keras; {_FROM_KERAS}"
    if "data.pkl" in names:
        return (
            "a file of torch.save or TorchScript; a network is package.module:factory, with such weights by --weights"
        )
    return "a zip archive; unpack it first"
