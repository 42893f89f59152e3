"""The questions whose answers are known: what a model must say before it may serve.

Decodes the golden tensors of a manifest and compares what a session answered with what the unfolded network
answered in float64. Does not run anything itself.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ArtifactInvalid
from ..tensors import DTYPES, Array


@dataclass(frozen=True)
class Golden:
    """Known inputs, their outputs, and how far a device may be off.

    `tolerance` maps a provider ("cpu", "cuda") to a fraction of the largest |value| of each float output; outputs
    of integer type have to be equal.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    tolerance: Mapping[str, float]

    @property
    def rows(self) -> int:
        """How many questions there are."""
        return int(next(iter(self.inputs.values())).shape[0])

    def check(self, answered: Mapping[str, Array], provider: str) -> dict[str, float]:
        """Compare answers with the expected ones.

        Args:
            answered: the outputs of a run on `inputs`, all rows.
            provider: "cpu" or "cuda", which chooses the tolerance.

        Returns:
            The largest deviation of each float output, relative to its largest |value|.

        Raises:
            ArtifactInvalid: an output is missing, has another shape or type, is not finite, or is too far off.
        """
        return {
            name: deviation
            for name, expected in self.outputs.items()
            if (deviation := _deviation(name, answered, expected, self.tolerance[provider])) is not None
        }


def _deviation(name: str, answered: Mapping[str, Array], expected: Array, tolerance: float) -> float | None:
    """Relative deviation of one float output; None for an integer output that is equal."""
    if name not in answered:
        raise ArtifactInvalid(f"golden output {name!r} is not among the model's outputs {sorted(answered)}")
    actual = answered[name]
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise ArtifactInvalid(
            f"output {name!r} is {actual.dtype} {actual.shape} on the golden inputs, "
            f"expected {expected.dtype} {expected.shape}"
        )
    if not np.issubdtype(expected.dtype, np.floating):
        _refuse_difference(name, actual, expected)
        return None
    if not np.isfinite(actual).all():
        raise ArtifactInvalid(f"output {name!r} holds NaN or infinity on the golden inputs; the weights are damaged")
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    deviation = float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)) / scale
    if deviation > tolerance:
        raise ArtifactInvalid(
            f"output {name!r} is off by {deviation:.2e} of its largest value on the golden inputs, "
            f"allowed are {tolerance:.0e}; the model does not answer as it did when it was published"
        )
    return deviation


def _refuse_difference(name: str, actual: Array, expected: Array) -> None:
    different = np.nonzero((actual != expected).reshape(len(expected), -1).any(axis=1))[0]
    if len(different):
        row = int(different[0])
        raise ArtifactInvalid(
            f"output {name!r} is {actual[row].tolist()} for golden row {row}, expected {expected[row].tolist()} "
            f"({len(different)} of {len(expected)} rows differ)"
        )


def golden_from_manifest(section: Any) -> Golden:
    """Decode the `golden` section of a manifest.

    Raises:
        ArtifactInvalid: a key is missing, a tensor does not decode, or the rows of the tensors differ in number.
    """
    if not isinstance(section, dict):
        raise ArtifactInvalid("manifest.json has no golden section; export the model again")
    inputs, outputs = (_tensors(section.get(key), key) for key in ("inputs", "outputs"))
    rows = {array.shape[0] if array.ndim else 0 for array in [*inputs.values(), *outputs.values()]}
    if len(rows) != 1 or 0 in rows:
        raise ArtifactInvalid(f"golden tensors in manifest.json have {sorted(rows)} rows, expected one number above 0")
    tolerance = section.get("tolerance")
    if not isinstance(tolerance, dict) or not all(
        isinstance(tolerance.get(provider), int | float) and 0 <= tolerance[provider] < 1
        for provider in ("cpu", "cuda")
    ):
        raise ArtifactInvalid(f"golden tolerance in manifest.json is {tolerance!r}, expected numbers for cpu and cuda")
    return Golden(inputs, outputs, {provider: float(value) for provider, value in tolerance.items()})


def _tensors(section: Any, key: str) -> dict[str, Array]:
    if not isinstance(section, dict) or not section:
        raise ArtifactInvalid(f"golden {key} in manifest.json are missing; export the model again")
    return {name: _tensor(name, tensor) for name, tensor in section.items()}


def _tensor(name: str, tensor: Any) -> Array:
    """Little-endian base64 with a V2 datatype and a shape -> array."""
    try:
        dtype = DTYPES[tensor["datatype"]].newbyteorder("<")
        data = base64.b64decode(tensor["data"], validate=True)
        return (
            np.frombuffer(data, dtype).reshape([int(size) for size in tensor["shape"]]).astype(dtype.newbyteorder("="))
        )
    except (KeyError, TypeError, ValueError, binascii.Error) as err:
        raise ArtifactInvalid(f"golden tensor {name!r} in manifest.json cannot be decoded: {err!r}") from err
