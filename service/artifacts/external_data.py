"""Refuse an ONNX file whose tensors point to other files, before anything opens those.

A runtime that has already followed a path to `../../etc` is too late a place to check. The weights themselves are not
read.
"""

from pathlib import Path

from ..errors import ArtifactInvalid
from .onnx_file import find_all, opened
from .protobuf import Message, read_fields
from .weights_beside import WEIGHTS_NAME, location_of, split

_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14


def refuse_external_data(path: Path) -> None:
    """Raise when a tensor of the ONNX file at `path` keeps its data in another file.

    Those of a sealed file that holds the weights beside the graph refer to that place.

    Raises:
        ArtifactInvalid: such a tensor exists, or the file is not an ONNX model.
    """
    with opened(path) as data:
        is_split = split(data) is not None
        if any(_points_outside(tensor, is_split) for tensor in find_all("Tensor", data)):
            raise ArtifactInvalid(f"{path} keeps weights in another file; export it as one file without external data")


def _points_outside(tensor: memoryview, is_split: bool) -> bool:
    if is_split and location_of(Message.parse(tensor)) == WEIGHTS_NAME:
        return False
    return any(
        number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value)
        for number, _, value in read_fields(tensor)
    )
