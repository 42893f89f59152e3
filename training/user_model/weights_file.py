"""A file of weights -> the tensors of a network: safetensors, or what `torch.save` wrote of a state dict.

Nothing is unpickled but tensors (`weights_only=True`). What had to be taken off the names is said; what does not fit is
named, with its likely cause.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..file_kind import kind_of
from .unset_statistics import require_statistics

_WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "net", "network", "weights")
_COUNTER = "num_batches_tracked"  # says how often a norm was updated, which no answer depends on
_STATISTICS = ("running_mean", "running_var")
_SHOWN = 5
_DEEPEST = 3  # keys above a state dict
_OPTIMIZER = re.compile("optim|sched|scaler", re.IGNORECASE)


def load_weights(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Give `model` the tensors of a file, and return what was taken off their names to make them fit.

    Args:
        model: gets the values, in its own dtypes.
        path: of a safetensors file, or of a `.pt` or `.pth` file with a state dict.

    Raises:
        ConfigError: the file is missing or unreadable, its names and shapes are not those of the model, or the model
            keeps statistics where no file can hold them.
    """
    tensors, notes = _state_dict_in(_read(path), path)
    expected = model.state_dict()
    tensors, prefix_notes = _without_prefix(tensors, expected)
    tensors = {name: tensor for name, tensor in tensors.items() if name in expected or not name.endswith(_COUNTER)}
    problems = _problems(model, tensors, expected)
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        cause = _likely_cause(tensors, expected)
        raise ConfigError(f"{path} does not fit the model: {'; '.join(problems[:_SHOWN])}{more}; {cause}")
    model.load_state_dict(tensors, strict=False)
    require_statistics(model, path)
    return (*notes, *prefix_notes, *_casts(tensors, expected))


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, as they stand there.

    Raises:
        ConfigError: the file is missing or unreadable, or holds no state dict.
    """
    return _state_dict_in(_read(path), path)[0]


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; expected weights as safetensors, .pt or .pth")
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".tar") or _is_pickled(path):
        return _read_pickle(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as err:
        kind = kind_of(path)
        why = f"it is {kind}" if kind else str(err)
        raise ConfigError(
            f"{path} is not a readable safetensors file: {why}; expected safetensors, .pt or .pth"
        ) from err


def _is_pickled(path: Path) -> bool:
    """Return whether a file begins as those of `torch.save` do, whatever it is called: a zip, or a pickled number.

    A safetensors file begins with the length of its header, which would be 67 MB or more; some hundred KB are usual.
    """
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # pickle's and zipfile's errors, and torch's own, share no base
        if "TorchScript" in str(err):
            why = "it is a TorchScript archive; save model.state_dict() of the module that it was made from"
        elif holds_objects(err):
            why = "it holds objects beside tensors, such as a whole module, and code in a file is never run here; save "
            why += "model.state_dict()"
        else:
            first = (str(err).strip().splitlines() or [""])[0][:120]
            why = f"it is no file of torch.save, or cut off ({type(err).__name__}: {first})"
        raise ConfigError(f"{path} cannot be read: {why}") from err


def holds_objects(err: Exception) -> bool:
    """Return whether `torch.load` refused what would run code; its own advice, to let it, must not be passed on."""
    return "weights_only" in str(err) or "Weights only" in str(err)


def _state_dict_in(content: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the state dict in what was read, which may stand under keys beside other things."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds a {type(content).__name__}; expected a state dict: save model.state_dict()")
    places = list(_places(content))
    usual = [place for place in places if place and place[0] in _WRAPPERS]
    if not places:
        keys = ", ".join(map(repr, list(content)[:_SHOWN]))
        raise ConfigError(f"{path} holds no state dict: its keys are {keys}; expected tensors by name, or {_WRAPPERS}")
    if len(places) > 1 and not usual:
        keys = ", ".join(repr(".".join(place)) for place in places[:_SHOWN])
        raise ConfigError(f"{path} holds several state dicts: {keys}; save the one that is meant by itself")
    place = min(usual, key=lambda keys: _WRAPPERS.index(keys[0])) if usual else places[0]
    for key in place:
        content = content[key]
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not place:
        return tensors, ()
    others = [".".join(keys) for keys in places if keys != place]
    beside = f", beside {', '.join(map(repr, others[:_SHOWN]))}" if others else ""
    return tensors, (f"weights taken from {'.'.join(place)!r} in {path.name}{beside}",)


def _places(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys that lead to each state dict in what was read; what an optimizer keeps is none."""
    if _is_state_dict(value):
        yield keys
    elif isinstance(value, Mapping) and len(keys) < _DEEPEST:
        for key, inner in value.items():
            if isinstance(key, str) and not _OPTIMIZER.search(key):
                yield from _places(inner, (*keys, key))


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    items = [item for name, item in value.items() if not name.endswith("_extra_state")]
    return any(isinstance(item, Tensor) for item in items) and all(
        isinstance(item, Tensor | int | float | str | None) for item in items
    )


def _without_prefix(
    tensors: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors under the model's names where one prefix, such as `module.`, is all that differs."""
    if any(name in expected for name in tensors):
        return tensors, ()
    prefixes: dict[str, int] = {}
    for name in tensors:
        for end in (i + 1 for i, letter in enumerate(name) if letter == "."):
            if name[end:] in expected:
                prefixes[name[:end]] = prefixes.get(name[:end], 0) + 1
                break
    if not prefixes:
        return tensors, ()
    prefix = max(prefixes, key=lambda text: prefixes[text])
    stripped = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    left = len(tensors) - len(stripped)
    others = f"; {left} tensors with other names are not of this network" if left else ""
    return stripped, (f"{prefix!r} taken off the names of {len(stripped)} tensors{others}",)


def _problems(model: nn.Module, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    held = {_place(expected[name]) for name in tensors if name in expected}
    missing = [name for name in expected if name not in tensors and not name.endswith(_COUNTER)]
    problems = [f"missing {name}" for name in missing if _place(expected[name]) not in held]  # tied ones are there
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    return problems


def _place(tensor: Tensor) -> tuple[int, ...]:
    return (tensor.data_ptr(), *tensor.shape) if tensor.numel() else (id(tensor),)


def _likely_cause(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    missing, unexpected = [n for n in expected if n not in tensors], [n for n in tensors if n not in expected]
    others = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    missing = [name for name in missing if not name.endswith(_COUNTER)]
    if missing and len(missing) == sum(not name.endswith(_COUNTER) for name in expected):
        return "no name fits: the file is of another architecture, or of another library's names"
    if missing and all(name.endswith(_STATISTICS) for name in missing):
        return "only statistics are missing: the file was written without buffers; save model.state_dict()"
    if others and not missing and not unexpected and {name.rpartition(".")[0] for name in others} == _last(expected):
        return "only the last layer differs: another number of classes; see --factory-args"
    if not missing and unexpected:
        return "the factory makes a smaller network than the file is of; see --factory-args"
    if not unexpected and missing:
        return "the factory makes a larger network than the file is of; see --factory-args"
    return "the file is of another network or of another variant of this one; see --factory-args"


def _last(expected: Sequence[str] | Mapping[str, Tensor]) -> set[str]:
    return {list(expected)[-1].rpartition(".")[0]}


def _casts(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[str, ...]:
    pairs = {(str(tensors[n].dtype)[6:], str(t.dtype)[6:]) for n, t in expected.items() if n in tensors}
    return tuple(f"weights in {one} taken into parameters in {other}" for one, other in sorted(pairs) if one != other)
