"""The questions whose answers are known: what a model must say before it may serve.

`foldserve.format.golden` reads them and compares; here a wrong answer becomes the error of a version not served.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

from foldserve.format.errors import FormatError, GoldenError
from foldserve.format.golden import Golden
from foldserve.format.image import ImageRecipe

from ..errors import ArtifactInvalid
from ..tensors import Array

_log = logging.getLogger(__name__)


# TF32 keeps 10 bits of a factor, so a product is off by up to 2^-10 = 1e-3 of itself; a network has several layers. The
# published LeNet is off by 6.5e-4 of its largest logit.
TF32_TOLERANCE = 5e-3


def with_tf32(golden: Golden) -> Golden:
    """Return `golden` with what products rounded to TF32 may be off by on CUDA; class ids have to be equal as ever."""
    allowed = max(golden.tolerance.get("cuda", 0.0), TF32_TOLERANCE)
    return replace(golden, tolerance={**golden.tolerance, "cuda": allowed})


def check_golden(golden: Golden, answers: Mapping[str, Array], provider: str) -> dict[str, float]:
    """Return the largest relative deviation of each float output from its golden answer.

    Args:
        golden: what was asked, and what is expected.
        answers: the outputs of a run on its inputs, all rows.
        provider: "cpu" or "cuda", which chooses the tolerance.

    Raises:
        ArtifactInvalid: an answer is missing, not finite, or off by more than the tolerance.
    """
    try:
        return golden.check(answers, provider)
    except GoldenError as err:
        raise ArtifactInvalid(str(err)) from err


def decode_golden(golden: Golden, recipe: ImageRecipe | None, model: str) -> Golden:
    """Return the golden answers with the pictures among the questions decoded as those of a request are.

    Args:
        golden: of a version.
        recipe: its model's own.
        model: its name, for the log.

    Raises:
        ArtifactInvalid: there are pictures and no recipe, or they do not decode to what they did.
    """
    if not golden.files:
        return golden
    if recipe is None:
        raise ArtifactInvalid("its golden answers are to pictures, and its graph states no picture recipe")
    from foldserve.pictures.golden_files import with_pixels  # its library takes long to import

    try:
        decoded, remark = with_pixels(golden, recipe)
    except (FormatError, GoldenError) as err:
        raise ArtifactInvalid(str(err)) from err
    if remark:
        _log.warning("model %s: %s", model, remark)
    return decoded
