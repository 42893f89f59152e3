"""The questions whose answers are known: what a model must say before it may serve.

`foldserve.format.golden` reads them and compares; here a wrong answer becomes the error of a version not served.
"""

from collections.abc import Mapping

from foldserve.format.errors import GoldenError
from foldserve.format.golden import Golden

from ..errors import ArtifactInvalid
from ..tensors import Array


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
