"""What must hold of a loaded model before it is measured: buckets, golden inputs and a first run that fit the graph."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..artifacts.repository import Artifact
from ..artifacts.unverified import made_inputs
from ..errors import ArtifactInvalid, BucketsInvalid
from ..settings import check_buckets
from ..tensors import Array
from .buckets import deviation, golden_batch
from .providers import first_line
from .runners import Runner
from .signature import Signature

_DEPENDENT = 0.2  # of the largest value
# Sizes of a free axis that are tried: long enough for several reductions by two, and what networks were trained with.
_FREE_SIZES = (32, 64, 16, 224, 320, 640, 8, 4, 2, 1)


def fitting_buckets(
    buckets: Sequence[int], fixed_rows: int | None, max_batch_size: int | None = None
) -> tuple[int, ...]:
    """Return the buckets that the graph can run; the only one of a graph whose batch size is fixed.

    Args:
        buckets: of the settings.
        fixed_rows: the only batch size that the graph takes, None for any.
        max_batch_size: rows of one run that its configuration allows, which is a bucket too; None for any number.

    Raises:
        BucketsInvalid: they are empty or not rising, or the fixed batch size is 0 or larger than all of them.
    """
    try:
        candidates = check_buckets(buckets)
    except ValueError as err:
        raise BucketsInvalid(f"buckets: got {list(buckets)}, {err}") from err
    if fixed_rows is None and max_batch_size is not None and max_batch_size < candidates[-1]:
        largest = max(1, max_batch_size)
        return (*(bucket for bucket in candidates if bucket < largest), largest)
    if fixed_rows is None:
        return candidates
    if fixed_rows == 0:
        raise BucketsInvalid("the graph takes batches of 0 rows; export it with a free first axis")
    if fixed_rows == 1:  # one by one, as many exporters have it
        return (1,)
    if fixed_rows > candidates[-1]:
        raise BucketsInvalid(
            f"the graph takes batches of exactly {fixed_rows} rows, more than the largest bucket: put {fixed_rows} "
            "among the buckets"
        )
    return (fixed_rows,)


def check_golden_inputs(artifact: Artifact, signature: Signature) -> None:
    """Compare names, types and row shapes of the golden inputs, and the names of the outputs, with the graph's.

    Whole numbers may be left out: rounding alone decides them where scores are equal, and they cannot be held to then.

    Raises:
        ArtifactInvalid: they differ.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    expected = {name: (str(spec.dtype), spec.shape[1:]) for name, spec in specs.items()}
    stated = {name: (str(array.dtype), array.shape[1:]) for name, array in artifact.golden.inputs.items()}
    if set(stated) != set(specs) or not all(
        dtype == str(specs[name].dtype) and specs[name].takes(shape) for name, (dtype, shape) in stated.items()
    ):
        raise ArtifactInvalid(f"golden inputs in {artifact.path} are {stated}, the graph takes {expected}")
    outputs = {spec.name for spec in signature.outputs}
    needed = {spec.name for spec in signature.outputs if spec.dtype.kind == "f"} or outputs
    if not needed <= set(artifact.golden.outputs) <= outputs:
        raise ArtifactInvalid(
            f"golden outputs in {artifact.path} are {sorted(artifact.golden.outputs)}, "
            f"the graph gives {sorted(outputs)}"
        )


def refuse_failing(runner: Runner, artifact: Artifact, rows: int) -> None:
    """Run a batch of the inputs that the graph is going to be measured on.

    Raises:
        ArtifactInvalid: the run fails.
    """
    try:
        runner.run(golden_batch(artifact.golden.inputs, rows))
    except Exception as err:  # onnxruntime's classes share no base below Exception
        inputs = "its golden inputs" if artifact.is_verified else "inputs made for it (floats 0 to 1, integers 0 or 1)"
        raise ArtifactInvalid(f"{artifact.model_path} fails on {inputs}: {first_line(err)}") from err


def refuse_dependent_rows(runner: Runner, artifact: Artifact) -> None:
    """Refuse a model whose answer to a row is another one beside another row: its first axis is no batch.

    Float additions in another order, and values that are quantised by the range of a batch, differ by far less. One
    that never gives the same answer twice draws random numbers, which its profile says. What cannot run two rows is
    left to whoever measures it.

    Raises:
        ArtifactInvalid: it is such a model.
    """
    pair = golden_batch(artifact.golden.inputs, 2)
    ones = [{name: array[row : row + 1] for name, array in pair.items()} for row in range(2)]
    try:
        together, alone = runner.run(pair), [runner.run(one) for one in ones]
        joined = {name: np.concatenate([one[name] for one in alone]) for name in together}
    except Exception:  # onnxruntime's classes share no base below Exception
        return
    if any(array.shape != joined[name].shape or len(array) != 2 for name, array in together.items()):
        return
    differs_by = deviation(together, joined)
    if differs_by > _DEPENDENT and deviation(together, runner.run(pair)) == 0:
        raise ArtifactInvalid(
            f"a row gets another answer beside another row, by up to {differs_by:.2g} of the largest value, so the "
            "graph's first axis is not the batch (time, or a sum over it?): export it with the batch first"
        )


def workable_inputs(runner: Runner, signature: Signature) -> dict[str, Array]:
    """Return made inputs for a model of which nothing else is known, free axes in a size that it runs with.

    Where none of the usual sizes does, those of the first; `refuse_failing` then says what the graph says.
    """
    if not signature.is_free:
        return made_inputs(signature.inputs)
    sizes = [size for size in _FREE_SIZES if size <= signature.inputs[0].largest]
    made = (made_inputs(signature.inputs, size) for size in sizes)
    rows = signature.fixed_rows or 1
    return next((inputs for inputs in made if _runs(runner, inputs, rows)), made_inputs(signature.inputs, sizes[0]))


def _runs(runner: Runner, inputs: Mapping[str, Array], rows: int) -> bool:
    try:
        runner.run(golden_batch(inputs, rows))
    except Exception:  # onnxruntime's classes share no base below Exception
        return False
    return True
