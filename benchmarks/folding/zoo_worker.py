"""Folds one model of the zoo, and says what came of it: norms, refusals, errors at two sizes, time and memory.

Runs in a process of its own; see `zoo`. The folded model is compared with PyTorch's float64 of the original, or with
onnxruntime, and never by the code that proved the fold.
"""

import copy
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.folding.cost import release, resident
from benchmarks.folding.zoo_models import Entry, entries, without_extensions

MOST_BYTES = 16 * 2**30  # of address space
_LEAST = 1e-3
SMALL_S = 20.0  # explain repeats the fold; where that took longer, it is not repeated


def main() -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    without_extensions()
    entry = next(entry for entry in entries() if entry.name == sys.argv[1])
    made = entry.make()
    found = fold_file(made) if isinstance(made, Path) else fold_module(made, entry)
    print(json.dumps({"name": entry.name, **found}))
    return 0


def fold_module(model: Any, entry: Entry) -> dict[str, Any]:
    """Return what came of folding a module."""
    import torch

    from foldserve.training.fold import explain, fold
    from tests.support.random_judge import in_float64

    torch.set_num_threads(1)
    model = with_statistics(model.eval())
    assert entry.shapes is not None
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in entry.shapes]
    with torch.no_grad():
        model(inputs[0])  # imports, and lazy state
    release()
    before, start = resident("VmRSS"), time.perf_counter()
    result = fold(model, (inputs[0],))
    seconds, peak = time.perf_counter() - start, resident("VmHWM") - before
    agrees = seconds > SMALL_S or explain(model, (inputs[0],)).as_dict() == result.report.as_dict()
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    errors = errors_of(copy.deepcopy(model).double(), in_float64(result), inputs)
    return {**summary(result.report, seconds, peak, size, agrees), "errors": errors}


def with_statistics(model: Any) -> Any:
    """Give every norm with running statistics values that are not the identity."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.running_mean.normal_(0, 0.2, generator=generator)
            if getattr(module, "weight", None) is not None and isinstance(module.weight, torch.nn.Parameter):
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.2, generator=generator)
    return model


def errors_of(before: Any, after: Any, inputs: list[Any]) -> list[float | str]:
    """Return the error at each input: a number, "not run" where the original does not take it, or what was raised."""
    import torch
    from torch.utils._pytree import tree_leaves

    errors: list[float | str] = []
    for x in inputs:
        try:
            with torch.no_grad():
                expected = before(x.double())
        except Exception:
            errors.append("not run")
            continue
        try:
            with torch.no_grad():
                got = after(x.double())
        except Exception as err:
            errors.append("other size" if "was read for" in str(err) else f"raised {type(err).__name__}: {err}"[:200])
            continue
        pairs = [(a, b) for a, b in zip(tree_leaves(expected), tree_leaves(got), strict=True) if torch.is_tensor(a)]
        errors.append(max(relative(a.double().numpy(), b.double().numpy()) for a, b in pairs))
    return errors


def relative(one: Any, other: Any, least: float = 0.0) -> float:
    """Return the largest difference over the largest value, infinite for other shapes or numbers that are none.

    Args:
        one: of the original.
        other: of the folded model.
        least: what the largest value counts as, at least: behind a sigmoid all may be as small as its rounding.
    """
    if one.shape != other.shape or not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return float("inf")
    good = np.isfinite(one)
    return float(np.abs(one - other)[good].max(initial=0) / (max(np.abs(one)[good].max(initial=0), least) or 1.0))


def fold_file(path: Path) -> dict[str, Any]:
    """Return what came of folding an ONNX file."""
    import onnx

    from foldserve.training.fold import explain_onnx, fold_onnx

    model = onnx.load(path)
    given_statistics(model)
    release()
    before, start = resident("VmRSS"), time.perf_counter()
    result = fold_onnx(model)
    seconds, peak = time.perf_counter() - start, resident("VmHWM") - before
    agrees = seconds > SMALL_S or explain_onnx(model).as_dict() == result.report.as_dict()
    size = max(sum(t.ByteSize() for t in one.graph.initializer) for one in (model, result.model)) / 2**20
    errors = [file_error(model, result.model, sizes) for sizes in ((2, 64), (3, 96))]
    return {**summary(result.report, seconds, peak, size, agrees), "errors": errors}


def given_statistics(model: Any) -> None:
    """Give the norms of onnx's light models, whose weights are computed and all equal, numbers that differ."""
    from onnx import numpy_helper

    rng, initializers = np.random.default_rng(0), {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        for name, low in zip(node.input[1:], (0.5, -0.2, -0.2, 0.5), strict=False):
            if model.producer_name == "onnx-caffe2" and node.op_type == "BatchNormalization" and name in initializers:
                tensor = initializers[name]
                if len(set(numpy_helper.to_array(tensor).ravel())) == 1:
                    values = rng.uniform(low, low + 0.4, list(tensor.dims)).astype(np.float32)
                    tensor.CopyFrom(numpy_helper.from_array(values, name))


def file_error(before: Any, after: Any, sizes: tuple[int, int]) -> float | str:
    """Return the error in onnxruntime (float32), the first axis and the other free ones being of these sizes."""
    from tests.support.random_onnx import run

    rng, known, feeds = np.random.default_rng(0), {t.name for t in before.graph.initializer}, {}
    for value in before.graph.input:
        if value.name not in known:
            dims = value.type.tensor_type.shape.dim
            shape = [d.dim_value if d.dim_value > 0 else sizes[min(i, 1)] for i, d in enumerate(dims)]
            feeds[value.name] = rng.normal(size=shape).astype(np.float32)
    try:
        expected = run(before, feeds)
    except Exception:
        return "not run"
    return max(relative(one, other, _LEAST) for one, other in zip(expected, run(after, feeds), strict=True))


def summary(report: Any, seconds: float, peak: float, size: float, agrees: bool) -> dict[str, Any]:
    """Return what a report says, as plain values."""
    alarms = [site.path for site in report.refused if "report this model" in site.remedy]
    return {
        "norms": len(report.folded) + len(report.refused),
        "folded": len(report.folded),
        "codes": dict(Counter(str(site.code) for site in report.refused)),
        "alarms": alarms,
        "form": report.form,
        "sizes": list(report.proof.sizes) if report.proof else [],
        "agrees": agrees,
        "seconds": seconds,
        "peak": peak,
        "parameters": size,
    }


if __name__ == "__main__":
    sys.exit(main())
