"""Golden answers: a few inputs, what the unfolded network says to them in float64, and how far a device may be off.

They travel in the manifest. The service compares with them before it is ready, training before it publishes and when a
version is verified later. Runs no model itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import FormatError, GoldenError
from .golden_files import GoldenFile, read_files
from .tensors import Array, decode_tensor, encode_tensor

PROVIDERS = ("cpu", "cuda")


@dataclass(frozen=True)
class Golden:
    """Known inputs and their outputs, each with the batch as its first axis.

    `tolerance` maps a provider ("cpu", "cuda") to a fraction of the largest |value| of each float output; outputs
    of integer type have to be equal. `files` are the rows of the picture input where `inputs` does not hold it: they
    become one by `foldserve.pictures.golden_files.with_pixels`.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    tolerance: Mapping[str, float]
    files: tuple[GoldenFile, ...] = ()

    @property
    def rows(self) -> int:
        """How many questions there are."""
        return len(self.files) or int(next(iter(self.inputs.values())).shape[0])

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest's `golden`."""
        files = {"files": [file.as_dict() for file in self.files]} if self.files else {}
        return files | {
            "inputs": {name: encode_tensor(array) for name, array in self.inputs.items()},
            "outputs": {name: encode_tensor(array) for name, array in self.outputs.items()},
            "tolerance": dict(self.tolerance),
        }

    def check(self, answers: Mapping[str, Array], provider: str) -> dict[str, float]:
        """Compare `answers`, the outputs of a run on all rows of `inputs`, with the expected ones.

        Args:
            answers: by name of output.
            provider: "cpu" or "cuda", which chooses the tolerance.

        Returns:
            The largest deviation of each float output, relative to its largest |value|.

        Raises:
            GoldenError: an output is missing, has another shape or type, is not finite, or is too far off.
        """
        for name, expected in self.outputs.items():
            _check_form(name, answers.get(name), expected)
        deviations = {}
        for name, expected in self.outputs.items():
            if expected.dtype.kind == "f":
                deviations[name] = _check_floats(name, answers[name], expected, self.tolerance[provider])
            else:
                _check_equal(name, answers[name], expected)
        return deviations


def read_golden(section: Any) -> Golden:
    """Return the golden answers in a manifest's `golden`.

    Raises:
        FormatError: a key is missing, a tensor or a file does not decode, or their rows differ in number.
    """
    if not isinstance(section, dict):
        raise FormatError("manifest.json has no golden section; export the model again")
    files = read_files(section.get("files"))
    inputs = {} if files and not section.get("inputs") else _tensors(section.get("inputs"), "inputs")
    outputs = _tensors(section.get("outputs"), "outputs")
    rows = {array.shape[0] if array.ndim else 0 for array in [*inputs.values(), *outputs.values()]}
    if files:
        rows.add(len(files))
    if len(rows) != 1 or 0 in rows:
        raise FormatError(f"golden tensors in manifest.json have {sorted(rows)} rows, expected one number above 0")
    tolerance = section.get("tolerance")
    if not isinstance(tolerance, dict) or not all(_is_tolerance(tolerance.get(provider)) for provider in PROVIDERS):
        raise FormatError(f"golden tolerance in manifest.json is {tolerance!r}, expected numbers for cpu and cuda")
    return Golden(inputs, outputs, {provider: float(value) for provider, value in tolerance.items()}, files)


def _tensors(section: Any, key: str) -> dict[str, Array]:
    if not isinstance(section, dict) or not section:
        raise FormatError(f"golden {key} in manifest.json are missing; export the model again")
    return {name: decode_tensor(tensor, f"golden tensor {name!r} in manifest.json") for name, tensor in section.items()}


def _is_tolerance(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1


def _check_form(name: str, answer: Array | None, expected: Array) -> None:
    if answer is None or answer.shape != expected.shape or answer.dtype != expected.dtype:
        got = "nothing" if answer is None else f"{answer.dtype} {answer.shape}"
        raise GoldenError(
            f"output {name!r} on the golden inputs: got {got}, expected {expected.dtype} {expected.shape}"
        )


def _check_floats(name: str, answer: Array, expected: Array, tolerance: float) -> float:
    if not np.isfinite(answer).all():
        raise GoldenError(f"output {name!r} holds NaN or infinity on the golden inputs; the weights are damaged")
    exact = expected.astype(np.float64)
    scale = float(np.abs(exact).max(initial=0.0)) or 1.0
    deviation = float(np.abs(answer.astype(np.float64) - exact).max(initial=0.0)) / scale
    if not deviation <= tolerance:
        raise GoldenError(
            f"output {name!r} is off by {deviation:.2e} of its largest value on the golden inputs, "
            f"allowed are {tolerance:.0e}; the model does not answer as it did when it was published"
        )
    return deviation


def _check_equal(name: str, answer: Array, expected: Array) -> None:
    rows = np.flatnonzero((answer != expected).reshape(len(expected), -1).any(axis=1))
    if rows.size:
        row = int(rows[0])
        differs = answer[row] != expected[row]
        raise GoldenError(
            f"output {name!r} is {answer[row][differs][0]} for golden row {row}, expected {expected[row][differs][0]} "
            f"({rows.size} of {len(expected)} rows differ)"
        )
