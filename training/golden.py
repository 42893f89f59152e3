"""Golden answers: a few real images and what the unfolded network says about them in float64, rounded once.

They travel in the manifest; the service computes them anew before it calls itself ready, and `verify` later. This
module chooses, encodes and compares; it runs no network.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ArtifactError, VerifyError

ROWS = 16
TOLERANCE: Mapping[str, float] = {"cpu": 1e-5, "cuda": 1e-4}  # of the largest |value| of each float output
# Below this gap between the two best logits, relative to the largest, another machine might rightly name another class.
DECISIVE_MARGIN = 1e-3

DATATYPES: Mapping[str, str] = {"UINT8": "uint8", "INT64": "int64", "FP32": "float32"}


def choose(labels: NDArray[np.int64], logits: NDArray[np.float64], rows: int = ROWS) -> NDArray[np.int64]:
    """Return ascending indices of `rows` images with clear answers, every class of `labels` among them.

    Args:
        labels: (N,) true classes.
        logits: (N, classes) of the float64 oracle.
        rows: how many, at least the number of classes.

    Raises:
        VerifyError: a class has no image with a clear answer, or there are fewer than `rows` of them.
    """
    candidates = np.flatnonzero(margins(logits) > DECISIVE_MARGIN * np.abs(logits).max())
    first = [candidates[labels[candidates] == class_id][:1] for class_id in np.unique(labels)]
    if any(found.size == 0 for found in first):
        raise VerifyError(f"only {candidates.size} images have a clear answer, and not of every class; train longer")
    chosen = np.concatenate(first)
    rest = np.setdiff1d(candidates, chosen)[: max(0, rows - chosen.size)]
    if chosen.size + rest.size < rows:
        raise VerifyError(f"{chosen.size + rest.size} images have a clear answer, expected {rows} or more")
    return np.sort(np.concatenate([chosen, rest]))


def margins(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the gap between the largest and the second largest of each row of `logits`, (N,)."""
    ordered = np.sort(logits, axis=1)
    gap: NDArray[np.float64] = ordered[:, -1] - ordered[:, -2]
    return gap


def answers(logits: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """Return what a served model should say for the oracle's float64 `logits`, each value rounded once.

    Returns:
        `logits` and `probabilities` float32 (N, classes), `class_id` int64 (N, 1).
    """
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return {
        "logits": logits.astype(np.float32),
        "probabilities": (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32),
        "class_id": logits.argmax(axis=1)[:, np.newaxis].astype(np.int64),
    }


def encode(images: NDArray[np.uint8], expected: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the manifest's `golden` for `images` (N, C, H, W) and the `expected` outputs by name."""
    return {
        "inputs": {"image": encode_tensor(images)},
        "outputs": {name: encode_tensor(array) for name, array in expected.items()},
        "tolerance": dict(TOLERANCE),
    }


def encode_tensor(array: NDArray[Any]) -> dict[str, Any]:
    """Return datatype in V2 terms, shape, and little-endian bytes in base64."""
    datatype = {dtype: name for name, dtype in DATATYPES.items()}[array.dtype.name]
    content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return {"datatype": datatype, "shape": list(array.shape), "data": base64.b64encode(content).decode("ascii")}


def decode_tensor(tensor: Mapping[str, Any]) -> NDArray[Any]:
    """Return the array that `encode_tensor` wrote.

    Raises:
        ArtifactError: the datatype is unknown, or shape and bytes do not fit together.
    """
    try:
        dtype = np.dtype(DATATYPES[tensor["datatype"]])
        flat = np.frombuffer(base64.b64decode(tensor["data"], validate=True), dtype.newbyteorder("<"))
        return flat.astype(dtype).reshape(tensor["shape"])
    except (KeyError, TypeError, ValueError, binascii.Error) as err:
        raise ArtifactError(f"golden tensor cannot be read ({err}); the manifest was changed or cut off") from err


def differences(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Return for each expected output the largest difference relative to its largest |value|.

    For integers it is the share of values that differ, so that 0.0 means equal for both kinds.

    Raises:
        VerifyError: an output is missing or has another shape or datatype.
    """
    result = {}
    for name, array in expected.items():
        other = found.get(name)
        if other is None or other.shape != array.shape or other.dtype != array.dtype:
            what = "nothing" if other is None else f"{other.dtype} {other.shape}"
            raise VerifyError(f"output {name!r}: got {what}, expected {array.dtype} {array.shape}")
        if array.dtype.kind == "f":
            exact = array.astype(np.float64)
            largest = np.abs(exact).max(initial=0.0)
            result[name] = float(np.abs(other.astype(np.float64) - exact).max(initial=0.0) / (largest or 1.0))
        else:
            result[name] = float(np.mean(other != array))
    return result


def check(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]], provider: str = "cpu") -> None:
    """Raise VerifyError when `found` are not the `expected` answers within the tolerance of `provider`."""
    limit = TOLERANCE[provider]
    for name, difference in differences(expected, found).items():
        allowed = limit if expected[name].dtype.kind == "f" else 0.0
        if not difference <= allowed:
            raise VerifyError(f"golden answers: output {name!r} is off by {difference:.1e}, limit {allowed:.0e}")
