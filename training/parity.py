"""Every form of the network over the same images, each compared with a float64 run of the unfolded one.

Comes after the export and before the artifact, which publishes only what passed here. The oracle is the network as
trained, in double precision; nothing of the fold, the exporter or the runtime takes part in it.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from . import golden
from .dataset import PIXEL_SCALE, Dataset, as_tensor, rows_at_once, scale_pixels
from .errors import VerifyError
from .served_session import RUNTIME_LEVELS, Session

TOLERANCE = 1e-5  # of the largest |logit|; LeNet in float32 is typically at 1e-6, a wrong fold at 1e-1
ALGEBRA_TOLERANCE = 1e-11  # of the layer on absolute values, float64 on both sides; typically 1e-15
ROWS = 500  # of 28 x 28 pixels in one forward pass


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How one form of the network compares with the oracle.

    Attributes:
        form: which form, in words.
        max_error: largest |difference of a logit| over the largest |logit| of the oracle.
        mean_error: mean |difference of a logit|, relative to the same.
        probability_error: largest |difference of a probability|; None where the form gives logits only.
        agreeing: images on which the predicted class is the oracle's.
        undecided: images on which it is not, but the oracle's two best logits lie within twice the error.
        correct: images on which it is the true class.
    """

    form: str
    max_error: float
    mean_error: float
    probability_error: float | None
    agreeing: int
    undecided: int
    correct: int


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What `verify` measured; the manifest's `parity`.

    Attributes:
        images: how many went through every form.
        largest_logit: largest |logit| of the oracle, what the errors are relative to.
        tolerance: limit of each form's `max_error`.
        forms: in the order of the way to the service, the last as it is served.
        algebra: path of each folded norm -> error of the fold's algebra in float64.
        algebra_tolerance: limit of these.
    """

    images: int
    largest_logit: float
    tolerance: float
    forms: tuple[Comparison, ...]
    algebra: Mapping[str, float]
    algebra_tolerance: float

    @property
    def served(self) -> Comparison:
        """The form that the service runs."""
        return self.forms[-1]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)

    def table(self) -> str:
        """Return the figures as text for a terminal."""
        width = max(len(form.form) for form in self.forms)
        lines = [f"{'against float64, unfolded':<{width}}  same class     max error  mean error"]
        for form in self.forms:
            same = f"{form.agreeing}/{self.images}"
            lines.append(f"{form.form:<{width}}  {same:<13}  {form.max_error:.1e}    {form.mean_error:.1e}")
        lines.append(
            f"errors are relative to the largest |logit| ({self.largest_logit:.1f}), limit {self.tolerance:.0e}"
        )
        if self.algebra:
            worst, limit = max(self.algebra.values()), self.algebra_tolerance
            lines.append(f"algebra of {len(self.algebra)} folds in float64: {worst:.1e} at most, limit {limit:.0e}")
        return "\n".join(lines)


def check_parity(
    original: nn.Module,
    folded: nn.Module,
    model: bytes,
    dataset: Dataset,
    *,
    algebra: Mapping[str, float | None],
    oracle: NDArray[np.float64] | None = None,
) -> Parity:
    """Return how well all forms of one network agree on the test images of `dataset`.

    Args:
        original: the trained, unfolded network, float32; images in [0, 1] to logits.
        folded: the same without norms; float32 pixels in 0..255 to logits.
        model: content of model.onnx.
        dataset: test images (N, C, H, W) uint8; the labels decide `correct`, not whether the forms agree.
        algebra: path of each folded norm -> what the fold's own proof measured there.
        oracle: `oracle_logits(original, dataset.test_images)` where it is known already.

    Raises:
        VerifyError: an error is above its tolerance, or a class differs where the oracle is decided.
    """
    images = dataset.test_images
    comparator = Comparator(oracle_logits(original, images) if oracle is None else oracle, dataset.test_labels)
    compare = comparator.compare
    forms = [
        compare("torch, unfolded", {"logits": _logits(original, map(scale_pixels, _chunks(images)))}),
        compare("torch, folded", {"logits": _logits(folded, (chunk.float() for chunk in _chunks(images)))}),
        *(compare(form, run_model(model, images, level)) for form, level in RUNTIME_LEVELS.items()),
    ]
    parity = Parity(
        images=len(images),
        largest_logit=comparator.largest,
        tolerance=TOLERANCE,
        forms=tuple(forms),
        algebra=_proved(algebra),
        algebra_tolerance=ALGEBRA_TOLERANCE,
    )
    require_parity(parity)
    return parity


def require_parity(parity: Parity) -> None:
    """Raise VerifyError, naming every form and site at fault, when `parity` is not good enough to publish."""
    faults = [fault for form in parity.forms for fault in _faults(form, parity)]
    faults += [
        f"fold of {site}: algebra off by {error:.1e}, limit {parity.algebra_tolerance:.0e}"
        for site, error in parity.algebra.items()
        if not error <= parity.algebra_tolerance
    ]
    if faults:
        raise VerifyError("the forms of the network do not agree, nothing is published: " + "; ".join(faults))


def oracle_logits(original: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the logits (N, classes) of a copy of the unfolded network in float64, with float64 pixels."""
    pixels = (chunk.double() / PIXEL_SCALE for chunk in _chunks(images))
    return _logits(original, pixels, torch.float64).astype(np.float64)


def run_model(
    model: bytes,
    images: NDArray[np.uint8],
    level: onnxruntime.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
) -> dict[str, NDArray[Any]]:
    """Return every output of `model` by name, as onnxruntime computes it on the CPU for `images` (N, C, H, W)."""
    session = Session(model, level)
    return session.run({session.inputs[0]: images})


class Comparator:
    """Compares the outputs of one form after another with the oracle's.

    Args:
        oracle: (N, classes) float64 logits.
        labels: (N,) true classes.
    """

    def __init__(self, oracle: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
        self.oracle = oracle
        self.labels = labels
        self.largest = float(np.abs(oracle).max())
        self.expected = golden.expected_outputs(oracle)
        self.margins = golden.margins(oracle)

    def compare(self, form: str, outputs: Mapping[str, NDArray[Any]]) -> Comparison:
        """Return the figures of `form`, from its `logits` and, where it gives them, `probabilities` and `class_id`."""
        error = np.abs(outputs["logits"].astype(np.float64) - self.oracle)
        # A NaN is further away than any number.
        error = np.where(np.isnan(error), np.inf, error)
        predicted = outputs["class_id"][:, 0] if "class_id" in outputs else outputs["logits"].argmax(axis=1)
        differs = predicted != self.expected["class_id"][:, 0]
        probabilities = outputs.get("probabilities")
        return Comparison(
            form=form,
            max_error=float(error.max() / self.largest),
            mean_error=float(error.mean() / self.largest),
            probability_error=None
            if probabilities is None
            else float(np.abs(probabilities - self.expected["probabilities"]).max()),
            agreeing=int((~differs).sum()),
            undecided=int((differs & (self.margins < 2 * error.max(axis=1))).sum()),
            correct=int((predicted == self.labels).sum()),
        )


def _faults(form: Comparison, parity: Parity) -> Iterator[str]:
    if not form.max_error <= parity.tolerance:
        yield f"{form.form}: logits off by {form.max_error:.1e} of the largest, limit {parity.tolerance:.0e}"
    if form.agreeing + form.undecided < parity.images:
        wrong = parity.images - form.agreeing - form.undecided
        yield f"{form.form}: another class on {wrong} of {parity.images} images on which the oracle is decided"
    # |dp| <= 2 p (1 - p) max |d logit| <= max |d logit| / 2; the other half is for float32's own rounding.
    limit = parity.tolerance * max(1.0, parity.largest_logit)
    if form.probability_error is not None and not form.probability_error <= limit:
        yield f"{form.form}: probabilities off by {form.probability_error:.1e}, limit {limit:.1e}"


def _proved(algebra: Mapping[str, float | None]) -> dict[str, float]:
    for site, error in algebra.items():
        if error is None:
            raise VerifyError(f"the fold of {site} comes without a proof of its algebra; fold the network again")
    return {site: error for site, error in algebra.items() if error is not None}


@torch.no_grad()
def _logits(network: nn.Module, batches: Iterable[torch.Tensor], dtype: torch.dtype = torch.float32) -> NDArray[Any]:
    copied = copy.deepcopy(network).cpu().to(dtype).eval()
    return np.concatenate([copied(batch).numpy() for batch in batches])


def _chunks(images: NDArray[np.uint8]) -> Iterator[torch.Tensor]:
    return iter(torch.split(as_tensor(images), rows_at_once(images, ROWS)))
