"""What a fold and a comparison ask of a model and its inputs, each with what to do where it is missing.

Used by the public functions before anything is read, and by `fold_plan` where torch.export could not read a model.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.export import ShapesCollection
from torch.utils._pytree import tree_leaves, tree_map

from ...errors import FoldError
from ..failures import machine_failure
from ..refusals import Refusal, RefusalCode
from .float64 import Inputs, call, named_tensors, sharing_copy
from .process_state import quiet
from .shape_changes import shapes_in
from .wrappers import is_exported
from .writing import apart


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise FoldError unless the value of an argument is one of the words that it may be."""
    if value not in choices:
        raise FoldError(f"{name} is {value!r}; expected {' or '.join(map(json.dumps, choices))}")


def require_dynamic(dynamic: object) -> None:
    """Raise FoldError unless `dynamic` is one of the kinds that are known; what it names is for torch.export to say."""
    if isinstance(dynamic, str) or not isinstance(dynamic, bool | Mapping | tuple | list | ShapesCollection | None):
        raise FoldError(
            f"dynamic is {dynamic!r}; expected True, False, or torch.export's dynamic_shapes, such as a tuple with "
            "{0: Dim.AUTO} for each argument"
        )


def require_arguments(inputs: object, name: str) -> None:
    """Raise FoldError unless what is called `name` can be the arguments of a forward."""
    if not isinstance(inputs, tuple | Mapping):
        kind = type(inputs).__name__
        raise FoldError(f"{name} is a {kind}; expected a tuple of arguments, or a mapping of keyword arguments")
    for value in tree_leaves(dict(inputs) if isinstance(inputs, Mapping) else inputs):
        if type(value).__name__ == "ndarray":
            raise FoldError(f"{name} holds an array of NumPy; expected tensors: torch.from_numpy makes them")


def require_eval(model: nn.Module, name: str) -> None:
    """Raise FoldError for a model in training mode; `name` is what it is called."""
    if model.training and not is_exported(model):
        raise Refusal(RefusalCode.TRAINING, f"the {name} is in training mode; expected model.eval()")


def require_foldable(model: nn.Module) -> None:
    """Raise FoldError for a model in a state that no fold can start from."""
    require_eval(model, "model")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            raise Refusal(RefusalCode.LAZY, f"the module '{name}' has no shapes yet; run one batch through the model")


def foldable(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """Return what is folded and run in the place of a model, which is the model as a rule; see `apart`.

    Raises:
        FoldError: the model is in a state that no fold can start from.
    """
    require_arguments(example_inputs, "example_inputs")
    require_foldable(model)
    require_values(model, example_inputs)
    return apart(model, example_inputs)


def require_values(model: nn.Module, inputs: object = ()) -> None:
    """Raise FoldError where a tensor of the model or its inputs has no values, or a kind that nothing may be set of."""
    probe = torch.empty(0)
    if probe.is_meta or type(probe) is not Tensor:
        raise FoldError("tensors that are made here have no values; leave the meta device or FakeTensorMode first")
    own = [(f"the tensor '{name}'", "load the weights first", tensor) for name, tensor in named_tensors(model)]
    leaves = tree_leaves(dict(inputs) if isinstance(inputs, Mapping) else inputs)
    given = [("an input", "expected one with values", value) for value in leaves if isinstance(value, Tensor)]
    for name, remedy, tensor in [*own, *given]:
        if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
            where = "a FakeTensor" if type(tensor).__name__ == "FakeTensor" else "on the meta device"
            raise FoldError(f"{name} is {where}, without values; {remedy}")
    for name, tensor in named_tensors(model):
        if tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
            raise FoldError(f"the tensor '{name}' is {tensor.layout}, which PyTorch cannot copy; fold dense weights")
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise FoldError(
                f"the tensor '{name}' was made in torch.inference_mode, outside of which it may not be used in every "
                "way; make or load the model outside of it"
            )


def require_running(model: nn.Module, inputs: Inputs) -> None:
    """Raise FoldError when the model itself does not run on the inputs, with what it raised."""
    runnable = sharing_copy(model)
    try:
        with torch.no_grad(), quiet():
            given = dict(inputs) if isinstance(inputs, Mapping) else inputs
            call(runnable, tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, given))
    except Exception as err:
        if machine_failure(err):
            return
        text, shapes = " ".join(str(err).split())[:400], " and ".join(map(str, shapes_in(inputs)))
        where = f"inputs of {shapes}" if shapes else "these inputs, none of which is a tensor"
        call_ = "model(**inputs)" if isinstance(inputs, Mapping) else "model(*inputs)"
        wanted = f"inputs that {call_} takes" if shapes else "tensors, such as (torch.randn(2, 3, 224, 224),)"
        raise FoldError(f"the model does not run on {where}: {type(err).__name__}: {text}; expected {wanted}") from err
