"""The body of `POST /predict` for a model that takes no pictures -> its inputs: rows, named columns, named inputs.

`{"instances": [...]}`, an instance for each row: a list as the input's row has it or flat, a number where a row is one
value; an object of columns or of inputs by name. Or the bytes of the only input, row after row. Values are checked as
the Open Inference Protocol's are; nothing after this point has to doubt the arrays.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import orjson

from .bodies.instances import instance_lists
from .bodies.json_body import describe, nesting_of, parse_json, shape_text
from .bodies.limits import WHOLE_JSON_BYTES, Limits, check_rows
from .bodies.long_json import LongText, cut_out_data, long_nesting
from .bodies.predict_body import EMPTY_BODY, media_type
from .errors import InvalidInput, UnsupportedMediaType, clip
from .tensors import Array, TensorSpec
from .v2.datatypes import BYTES, tensor_from_bytes
from .v2.json_tensor import tensor_from_json

Inputs = dict[str, Array]


def read_rows(
    body: bytes, content_type: str | None, specs: Sequence[TensorSpec], columns: Sequence[str] | None, limits: Limits
) -> Inputs:
    """Return the inputs of a model by name, each with one row for each instance.

    Args:
        body: the whole body.
        content_type: the header as it was sent.
        specs: the model's inputs.
        columns: names of the values of a row, for a model of one input.
        limits: how many rows one request may hold.

    Raises:
        UnsupportedMediaType: it is neither JSON nor bytes, or bytes for a model of several inputs.
        InvalidInput: the body is not what its media type says, or does not fit the model.
        TooManyRows: more than `limits.rows` rows.
    """
    kind = media_type(content_type)
    if not body:
        raise InvalidInput(EMPTY_BODY)
    if kind == "application/json":
        return _from_json(body, specs, columns, limits)
    if kind == "application/octet-stream" and len(specs) == 1 and specs[0].datatype != BYTES:
        return {specs[0].name: _from_bytes(body, specs[0], limits)}
    expected = "application/json" if len(specs) > 1 else "application/json or application/octet-stream"
    raise UnsupportedMediaType(f"Content-Type: {kind!r}, expected {expected}: this model takes no pictures")


def _from_bytes(body: bytes, spec: TensorSpec, limits: Limits) -> Array:
    if spec.is_free:
        raise InvalidInput(
            f"body: bare bytes do not say how large a row of {spec.name!r} is, send nested lists as JSON"
        )
    rows, rest = divmod(len(body), spec.row_bytes or 1)
    if rest or not rows:
        raise InvalidInput(
            f"body: {len(body)} bytes, expected a multiple of {spec.row_bytes} ({spec.datatype} {spec.row_shape} a row)"
        )
    check_rows(rows, limits)
    return tensor_from_bytes(memoryview(body), spec.datatype, (rows, *spec.row_shape), "body")


def _from_json(body: bytes, specs: Sequence[TensorSpec], columns: Sequence[str] | None, limits: Limits) -> Inputs:
    """Return the inputs of a JSON body; a long one is read and converted a slice at a time."""
    rows = 0
    parts: dict[str, list[Array]] = {spec.name: [] for spec in specs}
    for listed in instance_lists(body):
        check_rows(rows + len(listed), limits)
        place = f"instances[{rows}]"  # one that is long is alone in its list
        instances = [_opened(it, specs, place) if isinstance(it, LongText) else it for it in listed]
        specs = [_sized(spec, instances[0], is_only=len(specs) == 1) if spec.is_free else spec for spec in specs]
        for name, array in _slice(instances, specs, columns, rows).items():
            parts[name].append(array)
        rows += len(instances)
    return {name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for name, arrays in parts.items()}


def _opened(text: LongText, specs: Sequence[TensorSpec], place: str) -> Any:
    """Return a long instance; of an object the members, of which the long lists stay unparsed for now."""
    if text.is_list:
        return text
    around: bytes = text.body[text.start : text.stop]
    lists: dict[str, LongText] = {}
    for spec in specs:
        around, found = cut_out_data(around, orjson.dumps(spec.name))
        lists |= found
    if len(around) > WHOLE_JSON_BYTES:
        raise InvalidInput(f"{place}: {len(around)} bytes besides lists of numbers, expected an object of inputs")
    instance = parse_json(around)
    if not isinstance(instance, dict):
        return instance
    return {name: lists.pop(value, value) if isinstance(value, str) else value for name, value in instance.items()}


def _sized(spec: TensorSpec, first: Any, *, is_only: bool) -> TensorSpec:
    """Return what an input takes in this request where rows may have several shapes: that of the first one for all."""
    place = "instances[0]"
    if isinstance(first, dict):
        first, place = first.get(spec.name), f"{place}.{spec.name}"
    elif not is_only:
        return spec
    nesting = long_nesting(first) if isinstance(first, LongText) else nesting_of(first)
    if first is not None and not spec.takes(nesting):
        sizes = [f"1 to {spec.largest}" if size is None else str(size) for size in spec.shape[1:]]
        raise InvalidInput(f"{place}: lists nested as {shape_text(nesting)}, expected ({', '.join(sizes)})")
    return replace(spec, shape=(spec.shape[0], *nesting)) if spec.takes(nesting) else spec


def _slice(instances: list[Any], specs: Sequence[TensorSpec], columns: Sequence[str] | None, before: int) -> Inputs:
    """Return the inputs of some instances; so many stand `before` them."""
    first = instances[0]
    if not isinstance(first, dict) and len(specs) == 1:
        return {specs[0].name: _array(instances, specs[0], before)}
    by_columns = len(specs) == 1 and columns is not None and specs[0].name not in (first if type(first) is dict else ())
    names = list(columns or ()) if by_columns else [spec.name for spec in specs]
    for index, instance in enumerate(instances):
        _check_names(instance, names, f"instances[{before + index}]")
    if by_columns:
        rows = [[instance[name] for name in names] for instance in instances]
        return {specs[0].name: _array(rows, specs[0], before)}
    return {
        spec.name: _array([instance[spec.name] for instance in instances], spec, before, f".{spec.name}")
        for spec in specs
    }


def _check_names(instance: Any, names: Sequence[str], place: str) -> None:
    """Refuse an instance that does not give each name once and no other."""
    if isinstance(instance, LongText):
        raise InvalidInput(f"{place}: a list, expected an object of {_listed(names)}")
    if not isinstance(instance, dict):
        raise InvalidInput(f"{place}: {describe(instance)}, expected an object of {_listed(names)}")
    if len(instance) == len(names) and all(name in instance for name in names):
        return
    missing = [name for name in names if name not in instance]
    unknown = [name for name in instance if name not in names]
    got = f"no {clip(missing[0])!r}" if missing else f"unknown {clip(unknown[0])!r}"
    raise InvalidInput(f"{place}: {got}, expected an object of {_listed(names)}")


def _array(values: list[Any], spec: TensorSpec, before: int, field: str = "") -> Array:
    """Return the rows of one input; only where all together do not fit are they read one by one, to name the place."""
    shape = (len(values), *spec.row_shape)
    if not any(isinstance(value, LongText) for value in values):
        try:
            return _tensor(values, spec.datatype, shape, "instances")
        except InvalidInput:
            pass
    rows = [_row(value, spec, f"instances[{before + index}]{field}") for index, value in enumerate(values)]
    return np.stack(rows)


def _row(value: Any, spec: TensorSpec, place: str) -> Array:
    if not isinstance(value, list | LongText):
        if prod(spec.row_shape) != 1:
            raise InvalidInput(f"{place}: {describe(value)}, expected {_wanted(spec)}")
        value, place = [value], place
    return _tensor(value, spec.datatype, spec.row_shape or (1,), place).reshape(spec.row_shape)


def _tensor(values: Any, datatype: str, shape: tuple[int, ...], place: str) -> Array:
    """Return values as a tensor; FP16, which the protocol keeps out of JSON, is rounded from FP32."""
    if datatype != "FP16":
        return tensor_from_json(values, datatype, shape, place)
    wide = tensor_from_json(values, "FP32", shape, place)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float16)
    if not np.isfinite(narrow).all():
        raise InvalidInput(f"{place}: a number beyond 65504, expected one that fits FP16")
    return narrow


def _wanted(spec: TensorSpec) -> str:
    return f"a list of {prod(spec.row_shape)} values, flat or nested as {spec.row_shape}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(clip(name)) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
