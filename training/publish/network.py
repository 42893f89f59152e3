"""The unfolded network as somebody brought it, run in float64 and in its own precision; the oracle of every proof.

Two front ends with one interface: PyTorch's modules and ONNX models. Nothing of the fold, the exporter or the runtime
that serves takes part in what the oracle says.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigError, TrainingError, VerifyError
from ..fold.onnx.evaluator import Evaluator
from ..fold.onnx.protos import with_free_sizes
from ..fold.onnx.runtime import CannotRunError, outputs_of
from ..fold.pytorch.float64 import call, full_copy, run_model_in_float64, sharing_copy
from ..fold.pytorch.reproducible import first_difference
from ..served_session import chunks

Array = NDArray[Any]
Feeds = Mapping[str, Array]


class Network(Protocol):
    """What publishing asks of a network, whatever it was written in.

    Attributes:
        inputs: names of its inputs, in order.
        outputs: names of its outputs, in order.
        oracle_kind: what `oracle` is, in the manifest's words.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    oracle_kind: str

    @property
    def fixed_rows(self) -> int | None:
        """The one batch size that it takes, None where it takes any."""

    def oracle(self, feeds: Feeds) -> dict[str, Array]:
        """Return every output for rows of every input, in float64."""

    def deployed(self, feeds: Feeds) -> dict[str, Array]:
        """Return the same in the network's own precision."""

    def require_reproducible(self, feeds: Feeds) -> None:
        """Raise VerifyError, naming what differs, when the same rows give two answers."""


class TorchNetwork:
    """A module of PyTorch's.

    Args:
        module: in eval mode, floating-point parameters in float32.
        example: one tensor for each input, batch first.
        input_names: instead of the names of the arguments of `forward`.
        output_names: instead of those of a returned dict or named tuple.
        program: the TorchScript that `module` was converted from, which has to give the same bits; None for others.
    """

    oracle_kind = "float64 run of the unfolded network"

    def __init__(
        self,
        module: nn.Module,
        example: tuple[Tensor, ...],
        input_names: Sequence[str] = (),
        output_names: Sequence[str] = (),
        program: nn.Module | None = None,
    ) -> None:
        self.module = module
        self._program = program
        self.example = example
        self.fixed_rows: int | None = None
        self.inputs = _given("input", input_names, _argument_names(module, len(example)))
        self._dtypes = [value.dtype for value in example]
        with torch.no_grad():
            found = self._run_plainly(example)
        self.outputs = _given("output", output_names, tuple(named_outputs(found)))
        self.fixed_rows = self._only_rows()

    def _only_rows(self) -> int | None:
        """Return the one batch size that the network takes, as some exported programs do; None where it takes any."""
        rows = len(self.example[0])
        more = tuple(torch.cat([value, value[:1]]) for value in self.example)
        try:
            with torch.no_grad():
                found = named_outputs(call(sharing_copy(self.module), more)).values()
        except Exception:  # whatever a network raises that does not take one row more
            return rows
        return None if all(tensor.ndim and len(tensor) == rows + 1 for tensor in found) else rows

    def _run_plainly(self, values: tuple[Tensor, ...]) -> Any:
        try:
            return call(sharing_copy(self.module), values)
        except Exception as err:  # the user's code, whatever it raises
            shapes = ", ".join(f"{str(v.dtype)[6:]} {tuple(v.shape)}" for v in values)
            first = (str(err).splitlines() or [""])[0]
            raise ConfigError(
                f"the network does not run on inputs of {shapes}: {type(err).__name__}: {first}; does --input, or the "
                "image recipe, fit it?"
            ) from err

    def oracle(self, feeds: Feeds) -> dict[str, Array]:
        """Return every output for rows of every input, in float64."""
        return self._outputs(feeds, self._run_widely)

    def deployed(self, feeds: Feeds) -> dict[str, Array]:
        """Return the same in the network's own precision."""
        found = self._outputs(feeds, self._run_plainly)
        if self._program is not None:
            _require_same_bits(found, self._outputs(feeds, self._run_program))
        return found

    def _run_widely(self, values: tuple[Tensor, ...]) -> Any:
        try:
            return run_model_in_float64(self.module, values)
        except TrainingError:
            raise
        except Exception as err:  # the user's code, whatever it raises
            first = (str(err).splitlines() or [""])[0]
            raise VerifyError(
                f"the network does not run in float64, which its answers are compared with: {type(err).__name__}: "
                f"{first}; are its weights quantised, or does an operation know float32 alone? Publish the network "
                "before that, or its export to ONNX: foldserve publish NETWORK.onnx"
            ) from err

    def _run_program(self, values: tuple[Tensor, ...]) -> Any:
        assert self._program is not None
        return self._program(*(value.float() if value.is_floating_point() else value for value in values))

    def require_reproducible(self, feeds: Feeds) -> None:
        """Raise VerifyError, naming the operation, when the same rows give two answers."""
        values = self._tensors(next(chunks({name: array[:2] for name, array in feeds.items()}, self.fixed_rows)))
        with torch.no_grad():
            one, other = (_arrays(self._run_plainly(values)) for _ in range(2))
            if _same(one, other):
                return
            place = first_difference(lambda: self._run_plainly(values))
        active = [name for name, part in self.module.named_modules() if "dropout" in type(part).__name__.lower()]
        dropouts = f" (dropouts of the network: {', '.join(active[:5])})" if active else ""
        if "bernoulli" in (place or "") or "dropout" in (place or ""):
            dropouts += " (a dropout: F.dropout(x, p, self.training) ends with .eval(), F.dropout(x, p) never does)"
        raise VerifyError(
            f"the network gives another answer each time it gets the same rows, from {place or 'somewhere'} on"
            f"{dropouts}; nothing that is random can be proved: take it out, or call .eval()"
        )

    def _tensors(self, feeds: Feeds) -> tuple[Tensor, ...]:
        pairs = zip(self.inputs, self._dtypes, strict=True)
        return tuple(torch.from_numpy(np.ascontiguousarray(feeds[name])).to(dtype) for name, dtype in pairs)

    def _outputs(self, feeds: Feeds, run: Callable[[tuple[Tensor, ...]], Any]) -> dict[str, Array]:
        def part(rows: Feeds) -> list[Array]:
            with torch.no_grad():
                # The oracle gets its inputs as they are, not rounded to the network's precision.
                values = self._tensors(rows) if run == self._run_plainly else self._wide_tensors(rows)
                return _arrays(run(values))

        return _joined(self.outputs, map(part, chunks(feeds, self.fixed_rows)), _rows(feeds))

    def _wide_tensors(self, feeds: Feeds) -> tuple[Tensor, ...]:
        pairs = zip(self.inputs, self._dtypes, strict=True)
        return tuple(
            torch.from_numpy(np.ascontiguousarray(feeds[name])).to(torch.float64 if d.is_floating_point else d)
            for name, d in pairs
        )


class OnnxNetwork:
    """An ONNX model.

    Args:
        model: weights in memory.
        output_names: instead of those of the graph.
    """

    oracle_kind = "float64 evaluation of the original graph"

    def __init__(self, model: onnx.ModelProto, output_names: Sequence[str] = ()) -> None:
        self.model = model
        parameters = {tensor.name for tensor in model.graph.initializer}
        self._values = {value.name: value for value in model.graph.input if value.name not in parameters}
        self.inputs = tuple(self._values)
        self._own_outputs = [value.name for value in model.graph.output]
        self.outputs = _given("output", output_names, tuple(self._own_outputs))
        self._evaluator = Evaluator(with_free_sizes(model))

    def oracle(self, feeds: Feeds) -> dict[str, Array]:
        """Return every output for rows of every input, in float64."""

        def part(rows: Feeds) -> list[Array]:
            wide = {name: v.astype(np.float64) if v.dtype.kind == "f" else v for name, v in rows.items()}
            found = self._evaluator.run(wide, self._own_outputs)
            for name in self._own_outputs:
                if name not in found:
                    gap = self._evaluator.unknown.get(name)
                    why = f"{gap.node}: {gap.reason}" if gap else "it has no value"
                    raise VerifyError(f"output {name!r} cannot be evaluated in float64 ({why}); nothing is proved")
            return [np.asarray(found[name]) for name in self._own_outputs]

        return _joined(self.outputs, map(part, chunks(feeds, self.fixed_rows)), _rows(feeds))

    def deployed(self, feeds: Feeds) -> dict[str, Array]:
        """Return the same in the model's own precision: onnxruntime with every optimisation off."""

        def part(rows: Feeds) -> list[Array]:
            narrow = {name: rows[name].astype(self._dtype(name)) for name in self.inputs}
            try:
                found = outputs_of(self.model, narrow, self._own_outputs)
            except CannotRunError as err:
                raise ConfigError(f"onnxruntime does not run the model as it is: {err}") from err
            return [np.asarray(found[name]) for name in self._own_outputs]

        return _joined(self.outputs, map(part, chunks(feeds, self.fixed_rows)), _rows(feeds))

    def require_reproducible(self, feeds: Feeds) -> None:
        """Raise VerifyError, naming the random operations, when the same rows give two answers."""
        few = {name: array[:2] for name, array in feeds.items()}
        if not _same(*(list(self.deployed(few).values()) for _ in range(2))):
            random = sorted({node.name or node.op_type for node in self.model.graph.node if "Random" in node.op_type})
            raise VerifyError(
                f"the model gives another answer each time it gets the same rows ({', '.join(random) or 'unknown'}); "
                "nothing that is random can be proved"
            )

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self._values[name].type.tensor_type.elem_type))

    @property
    def fixed_rows(self) -> int | None:
        """The one batch size that the graph takes, None where it takes any."""
        shapes = [value.type.tensor_type.shape.dim for value in self._values.values()]
        return next((shape[0].dim_value for shape in shapes if len(shape) and shape[0].dim_value > 0), None)


def as_float32(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the module in float32, a copy where it is in another precision, and what was done."""
    dtypes = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()}
    others = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes - {torch.float32})
    if not others:
        return module, ()
    kind = "exactly" if "float64" not in others else "rounded once, which the proof measures"
    return full_copy(module).float(), (f"weights in {', '.join(others)} become float32, {kind}",)


def named_outputs(value: Any, name: str = "output") -> dict[str, Tensor]:
    """Return the tensors in what a network returned: by key, by field, or as output, output_0, output_1, and so on."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, Mapping):
        parts = [(str(key), item) for key, item in value.items()]
    elif hasattr(value, "_fields"):
        parts = list(zip(value._fields, value, strict=True))
    elif dataclasses.is_dataclass(value):
        parts = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, list | tuple):
        parts = [(f"{name}_{number}" if len(value) > 1 else name, item) for number, item in enumerate(value)]
    else:
        return {}
    found: dict[str, Tensor] = {}
    for key, item in parts:
        found |= {k if k not in found else f"{key}_{k}": v for k, v in named_outputs(item, key).items()}
    return found


def _rows(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))


def _joined(names: Sequence[str], parts: Iterator[list[Array]], rows: int) -> dict[str, Array]:
    columns = list(zip(*parts, strict=True))
    if len(columns) != len(names):
        raise VerifyError(f"the network gave {len(columns)} tensors, then {len(names)}; expected the same each time")
    joined = {}
    for name, arrays in zip(names, columns, strict=True):
        whole = np.concatenate(arrays) if arrays[0].ndim else np.stack(arrays)
        if len(whole) < rows:
            raise ConfigError(f"output {name!r} has {len(whole)} rows for {rows} rows of input; expected one for each")
        joined[name] = whole[:rows]
    return joined


def _arrays(value: Any) -> list[Array]:
    return [tensor.detach().cpu().numpy() for tensor in named_outputs(value).values()]


def _same(one: Sequence[Array], other: Sequence[Array]) -> bool:
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(one, other, strict=True))


def _require_same_bits(converted: Mapping[str, Array], program: Mapping[str, Array]) -> None:
    for name, value in program.items():
        if not _same([converted[name]], [value]):
            raise VerifyError(
                f"output {name!r} of the converted TorchScript is not that of the program; publish the network that it "
                "was made from, or its export to ONNX"
            )


def _argument_names(module: nn.Module, count: int) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [parameter.name for parameter in parameters if parameter.kind in kinds][:count]
    return tuple(names) if len(names) == count else tuple(f"input_{number}" for number in range(count))


def _given(kind: str, given: Sequence[str], own: tuple[str, ...]) -> tuple[str, ...]:
    if not given:
        return own
    if len(given) != len(own) or len(set(given)) < len(given):
        raise ConfigError(f"{kind} names {', '.join(given)}: expected {len(own)} different ones, for {', '.join(own)}")
    return tuple(given)
