"""What a request says about its tensors, against what the model takes, in the order in which Triton checks it.

Number of inputs, names, datatypes, the batch axis, the other axes: before any bytes are read. HTTP and gRPC share
these checks, so that both refuse the same requests with the same sentence.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

from ..errors import InvalidInput, TooManyRows, Unsupported, clip
from ..tensors import TensorSpec
from .datatypes import DATATYPES


@dataclass(frozen=True, slots=True)
class DeclaredTensor:
    """Name, datatype and shape of one input as a request states them; the shape may hold any integers yet."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """One output of a request: as raw bytes or not, as the tensor itself (0 classes) or as its largest values."""

    name: str
    binary: bool
    classes: int = 0


def check_inputs(declared: Sequence[DeclaredTensor], specs: Sequence[TensorSpec], max_rows: int) -> int:
    """Return the rows of a request whose inputs are those of the model.

    Raises:
        InvalidInput: an input is missing, unknown or doubled, or differs in datatype, rank or a fixed axis, or the
            inputs differ in rows, or there are none.
        TooManyRows: more than `max_rows`.
    """
    by_name = {spec.name: spec for spec in specs}
    _check_names([tensor.name for tensor in declared], by_name)
    for tensor in declared:
        _check_datatype(tensor, by_name[tensor.name])
        _check_shape(tensor, by_name[tensor.name])
    rows = declared[0].shape[0]
    for tensor in declared[1:]:
        if tensor.shape[0] != rows:
            raise InvalidInput(
                f"input {tensor.name!r}: {tensor.shape[0]} rows, expected {rows} as in input {declared[0].name!r}"
            )
    if rows > max_rows:
        raise TooManyRows(f"{clip(rows)} rows, expected at most {max_rows} in one request: send them in several")
    return rows


def wanted_outputs(
    wanted: Sequence[WantedOutput], specs: Sequence[TensorSpec], *, binary: bool
) -> tuple[WantedOutput, ...]:
    """Return the outputs that a request wants: all of the model's where it names none.

    Args:
        wanted: those that it names.
        specs: what the model gives.
        binary: whether outputs that are not named go back as raw bytes.

    Raises:
        InvalidInput: the model does not give an output, or it is requested twice, or cannot be classified.
    """
    by_name = {spec.name: spec for spec in specs}
    seen: set[str] = set()
    for output in wanted:
        if output.name not in by_name:
            raise InvalidInput(f"outputs: {clip(output.name)!r} is not an output, expected one of {sorted(by_name)}")
        if output.name in seen:
            raise InvalidInput(f"outputs: got {output.name!r} twice, expected each output once")
        seen.add(output.name)
        spec = by_name[output.name]
        if output.classes and (spec.datatype == "BOOL" or prod(spec.row_shape) < 1):
            raise InvalidInput(f"output {output.name!r}: {spec.datatype} has no largest values to classify by")
    return tuple(wanted) or tuple(WantedOutput(name, binary) for name in by_name)


def refuse_shared_memory(parameters: Collection[str], place: str) -> None:
    """Raise when a tensor is said to lie in shared memory, which this service does not offer.

    Raises:
        Unsupported: always in that case.
    """
    if "shared_memory_region" in parameters:
        raise Unsupported(f"{place}: shared memory is not offered, send the tensor in the request")


def _check_names(names: Sequence[str], expected: Collection[str]) -> None:
    if len(names) != len(expected):
        raise InvalidInput(f"inputs: got {len(names)}, expected {len(expected)} ({', '.join(sorted(expected))})")
    for position, name in enumerate(names):
        if name not in expected:
            raise InvalidInput(f"inputs[{position}]: name {clip(name)!r}, expected one of {sorted(expected)}")
        if name in names[:position]:
            raise InvalidInput(f"inputs[{position}]: got {name!r} twice, expected each input once")


def _check_datatype(tensor: DeclaredTensor, spec: TensorSpec) -> None:
    if tensor.datatype not in DATATYPES:
        raise InvalidInput(f"input {tensor.name!r}: datatype {clip(tensor.datatype)!r}, expected {spec.datatype}")
    if tensor.datatype != spec.datatype:
        raise InvalidInput(
            f"input {tensor.name!r}: datatype {tensor.datatype}, expected {spec.datatype} (none is cast)"
        )


def _check_shape(tensor: DeclaredTensor, spec: TensorSpec) -> None:
    shape = tensor.shape
    is_taken = spec.takes(shape[1:]) if spec.is_free else shape[1:] == spec.row_shape
    if not is_taken or len(shape) != len(spec.shape) or shape[0] < 1:
        sizes = [f"1 to {spec.largest}" if size is None else str(size) for size in spec.shape[1:]]
        expected = ", ".join(["N", *sizes])
        rows = " with N at least 1" if is_taken else ""
        raise InvalidInput(f"input {tensor.name!r}: shape {clip(list(shape[:16]))}, expected [{expected}]{rows}")
