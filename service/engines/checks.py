"""What must hold of a loaded model before it is measured: buckets, golden inputs and a first run that fit the graph."""

from collections.abc import Sequence

from ..artifacts.repository import Artifact
from ..errors import ArtifactInvalid, BucketsInvalid
from ..settings import check_buckets
from .buckets import golden_batch
from .providers import first_line
from .runners import Runner
from .signature import Signature


def fitting_buckets(buckets: Sequence[int], fixed_rows: int | None) -> tuple[int, ...]:
    """Return the buckets that the graph can run; the only one of a graph whose batch size is fixed.

    Raises:
        BucketsInvalid: they are empty or not rising, or do not hold the fixed batch size.
    """
    try:
        candidates = check_buckets(buckets)
    except ValueError as err:
        raise BucketsInvalid(f"buckets: got {list(buckets)}, {err}") from err
    if fixed_rows is None:
        return candidates
    if fixed_rows not in candidates:
        raise BucketsInvalid(
            f"the graph takes batches of exactly {fixed_rows} rows; put {fixed_rows} among the buckets"
        )
    return (fixed_rows,)


def check_golden_inputs(artifact: Artifact, signature: Signature) -> None:
    """Compare names, types and row shapes of the golden inputs, and the names of the outputs, with the graph's.

    Raises:
        ArtifactInvalid: they differ.
    """
    expected = {spec.name: (str(spec.dtype), spec.shape[1:]) for spec in signature.inputs}
    stated = {name: (str(array.dtype), array.shape[1:]) for name, array in artifact.golden.inputs.items()}
    if stated != expected:
        raise ArtifactInvalid(f"golden inputs in {artifact.path} are {stated}, the graph takes {expected}")
    if set(artifact.golden.outputs) != {spec.name for spec in signature.outputs}:
        raise ArtifactInvalid(
            f"golden outputs in {artifact.path} are {sorted(artifact.golden.outputs)}, "
            f"the graph gives {sorted(spec.name for spec in signature.outputs)}"
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
