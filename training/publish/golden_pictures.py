"""Golden answers of encoded pictures: what proves decoding, recipe, graph and device together, each time it is asked.

A picture that is larger than its share of the manifest is kept at the model's size; the oracle answers for what the
kept file decodes to, whatever that is.
"""

from dataclasses import dataclass, replace

import numpy as np

from foldserve import pictures
from foldserve.format.golden import Golden
from foldserve.pictures.golden_files import pack

from ..errors import VerifyError
from .examples import Examples, PictureInput
from .network import Array, Network
from .proof import Session, Tolerance, distance, undecided_rows
from .tasks import expected_outputs


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a network's outputs are for the task that is served."""

    task: str
    scores: str | None
    is_probability: bool


def with_files(
    golden: Golden,
    rows: Array,
    examples: Examples,
    images: PictureInput,
    network: Network,
    meaning: Meaning,
    served: Session,
    tolerance: Tolerance,
) -> Golden:
    """Return golden answers whose picture input is files, where the examples are files.

    Args:
        golden: of pixels.
        rows: indices of their examples.
        examples: as the user gave them.
        images: how pictures become an input.
        network: the oracle.
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
    feeds = {images.name: images.original(pixels)}
    oracle = expected_outputs(network.oracle(feeds), meaning.task, meaning.scores, meaning.is_probability)
    deployed = expected_outputs(network.deployed(feeds), meaning.task, meaning.scores, meaning.is_probability)
    clear = ~undecided_rows(oracle, deployed, tolerance)
    kept = np.flatnonzero(clear) if "class_id" in golden.outputs else np.arange(len(files))
    if not kept.size:
        return golden
    got = served.run({images.recipe.input: pixels})
    outputs = {name: oracle[name][kept].astype(values.dtype) for name, values in golden.outputs.items()}
    for name, expected in outputs.items():
        error = (
            distance(got[name][kept], expected)
            if expected.dtype.kind == "f"
            else float((got[name][kept] != expected).any())
        )
        if not error <= (tolerance.cpu if expected.dtype.kind == "f" else 0):
            raise VerifyError(f"output {name!r} of the golden pictures is off by {error:.1e}; nothing is published")
    return replace(golden, inputs={}, outputs=outputs, files=tuple(files[row] for row in kept))
