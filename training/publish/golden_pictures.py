"""Golden answers of encoded pictures: what proves decoding, recipe, graph and device together, each time it is asked.

A picture that is larger than its share of the manifest is kept at the model's size; the oracle answers for what the
kept file decodes to, whatever that is.
"""

from dataclasses import replace

import numpy as np

from foldserve import pictures
from foldserve.format.golden import Golden
from foldserve.pictures.golden_files import pack

from ..errors import VerifyError
from ..served_session import Session
from .examples import Examples, PictureInput
from .network import Array, Network
from .proof import Tolerance, distance, undecided_rows
from .reference import answers_of
from .tasks import Meaning


def with_files(
    golden: Golden,
    rows: Array,
    examples: Examples,
    images: PictureInput,
    network: Network,
    meaning: Meaning,
    served: bytes,
    tolerance: Tolerance,
) -> Golden:
    """Return golden answers whose picture input is files, where the examples are files.

    Args:
        golden: of pixels, proved.
        rows: indices of their examples.
        examples: as the user gave them.
        images: how pictures become an input.
        network: the oracle, which is asked only for files that decode to other pixels than their examples.
        meaning: of its outputs.
        served: the served graph, which has to give the new answers.
        tolerance: how closely.

    Raises:
        VerifyError: it does not.
    """
    if examples.files is None:
        return golden
    files = pack([(f"example {row}", examples.files[row]) for row in rows], images.recipe)
    pixels = np.stack([pictures.decode(file.content, images.recipe) for file in files])
    known = golden.inputs[images.recipe.input][: len(files)]
    others = np.flatnonzero((pixels != known).reshape(len(files), -1).any(axis=1))
    outputs = {name: values[: len(files)].copy() for name, values in golden.outputs.items()}
    kept = np.ones(len(files), bool)
    if others.size:
        kept[others] = _answer(outputs, others, pixels[others], images, network, meaning, served, tolerance)
    if not kept.any():
        return golden
    chosen = np.flatnonzero(kept)
    outputs = {name: values[chosen] for name, values in outputs.items()}
    return replace(golden, inputs={}, outputs=outputs, files=tuple(files[row] for row in chosen))


def _answer(
    outputs: dict[str, Array],
    places: Array,
    pixels: Array,
    images: PictureInput,
    network: Network,
    meaning: Meaning,
    served: bytes,
    tolerance: Tolerance,
) -> Array:
    """Write the oracle's answers for other pixels into `outputs` and return for each whether its class is clear."""
    answers = answers_of(network, places, {images.name: images.original(pixels)})
    oracle, deployed = meaning.expected(answers.oracle), meaning.expected(answers.deployed)
    clear = ~undecided_rows(oracle, deployed, tolerance) if "class_id" in outputs else np.ones(len(places), bool)
    got = Session(served).run({images.recipe.input: pixels})
    for name, values in outputs.items():
        values[places] = oracle[name].astype(values.dtype)
        _require_equal(name, got[name][clear], values[places][clear], tolerance)
    return clear


def _require_equal(name: str, got: Array, expected: Array, tolerance: Tolerance) -> None:
    is_float = expected.dtype.kind == "f"
    error = distance(got, expected) if is_float else float((got != expected).any())
    if not error <= (tolerance.cpu if is_float else 0):
        raise VerifyError(f"output {name!r} of the golden pictures is off by {error:.1e}; nothing is published")
