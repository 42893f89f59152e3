"""Folds one random graph and says whether it still gives the same numbers, by PyTorch or onnxruntime, not by our code.

Every graph is run at the example's size, and at another size and batch.
"""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from foldserve.training.fold import Folded, fold, fold_onnx
from tests.support.random_onnx import random_graph, run
from tests.support.random_torch import random_network

LIMIT = 1e-8  # of the largest output, in float64 with exact parameters; a wrong fold is off by 1e-1
LIMIT_IN_FLOAT32 = 1e-3  # onnxruntime has no double convolution


@dataclass(frozen=True)
class Verdict:
    """What became of one random graph.

    Attributes:
        seed: that it was drawn from.
        folded: how many norms.
        refused: codes of the norms that stay.
        error: largest |difference| over the largest |output|, at all sizes.
        sizes: how many of the two sizes both networks ran at.
        word: "right", "wrong", or what was raised.
        form: of the result.
    """

    seed: int
    folded: int = 0
    refused: tuple[str, ...] = ()
    error: float = 0.0
    sizes: int = 0
    word: str = "right"
    form: str = ""


def judge_torch(seed: int) -> Verdict:
    """Fold the random PyTorch network of this seed and compare it with itself in float64."""
    network, *inputs = random_network(seed)
    options: dict[str, Any] = {"padding": "exact" if seed % 2 else "refuse"}
    try:
        result = fold(network, (inputs[0],), **options)
    except Exception as err:
        return Verdict(seed, word=f"raised {type(err).__name__}: {err}")
    return _compared(seed, network, result, inputs)


def _compared(seed: int, network: nn.Module, result: Folded, inputs: list[Tensor]) -> Verdict:
    report, before, after = result.report, copy.deepcopy(network).double(), in_float64(result)
    errors, word = [], "right"
    for number, x in enumerate(inputs):
        try:
            with torch.no_grad():
                expected = before(x.double())
        except Exception:  # this network does not take the other size
            continue
        try:
            with torch.no_grad():
                errors.append(_error(expected, after(x.double())))
        except ValueError as err:  # the graph form says for which sizes it was read
            word = word if number and "was read for" in str(err) else f"raised {type(err).__name__}: {err}"
        except Exception as err:
            word = f"raised {type(err).__name__}: {err}"
    worst = max(errors, default=float("nan"))
    word = word if worst <= LIMIT or word != "right" else "wrong"
    codes = tuple(str(site.code) for site in report.refused)
    return Verdict(seed, len(report.folded), codes, worst, len(errors), word, report.form)


def in_float64(result: Folded) -> nn.Module:
    """Return the folded network in float64, its changed parameters as they were before their rounding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # copying a GraphModule warns about pytrees of torch's own
        wide = copy.deepcopy(result.model).double()
    for name, values in result.exact.items():
        path, _, attribute = name.rpartition(".")
        getattr(wide.get_submodule(path), attribute).data.copy_(torch.from_numpy(values))
    return wide


def _error(expected: Any, got: Any) -> float:
    pairs = list(zip(tree_leaves(expected), tree_leaves(got), strict=True))
    return max(_relative(one, other) for one, other in pairs)


def _relative(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    if not one.numel():
        return 0.0
    scale = float(one.abs().max()) or 1.0
    return float((one - other).abs().max()) / scale


def judge_onnx(seed: int) -> Verdict:
    """Fold the random ONNX graph of this seed and compare it with itself, run by onnxruntime."""
    model, feeds, _ = random_graph(seed)
    try:
        result = fold_onnx(model, padding="exact" if seed % 2 else "refuse")
    except Exception as err:
        return Verdict(seed, word=f"raised {type(err).__name__}: {err}")
    errors, word = [], "right"
    for given in feeds:
        try:
            expected = run(model, given)
        except Exception:  # this graph does not take the other size
            continue
        try:
            errors.append(_error(*([torch.from_numpy(v) for v in one] for one in (expected, run(result.model, given)))))
        except Exception as err:
            word = f"raised {type(err).__name__}: {err}"
    worst = max(errors, default=float("nan"))
    word = word if worst <= LIMIT_IN_FLOAT32 or word != "right" else "wrong"
    codes = tuple(str(site.code) for site in result.report.refused)
    return Verdict(seed, len(result.report.folded), codes, worst, len(errors), word, "onnx")
