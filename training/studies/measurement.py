"""One case of a study trained and measured: figures as plain JSON values.

Every case is measured in the same way, so that any two can be compared. It prints and writes nothing.
"""

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

from ..compiled import WORTH_COMPILING_EPOCHS
from ..dataset import FashionMNIST, scale_pixels
from ..device import to_device
from ..errors import DivergenceError
from ..fit import EpochRecord, evaluate, fit
from ..provenance import revision
from ..statistics import Norm, population_statistics
from .arms import Case
from .selection import first_rows, held_out

EPOCH_ROWS = 5_000  # training images behind the population statistics of every epoch; the last figures take them all
SATURATION_ROWS = 2_000  # test images on which saturation is measured
SATURATED_SLOPE = 0.025  # a tenth of a sigmoid's steepest slope, 1/4; |x| > 3.6


def measure(case: Case, dataset: FashionMNIST, device: torch.device, *, compiled: bool = False) -> dict[str, Any]:
    """Return what training `case` gave.

    A case that diverges is a finding too: it has `diverged` with the reason, and the figures until then.

    Args:
        case: what to train.
        dataset: to train and test on.
        device: of every step.
        compiled: whether steps of longer trainings go through `torch.compile`, which rounds otherwise and is faster.

    Returns:
        `arm`, `seed`, `recipe`, `network`, `train_rows`, `threads`, `revision`, `compiled`, `seconds`, and `diverged`
        with the reason or None; `epochs`: one record each, with `population_accuracy` where there are norms;
        `test_accuracy` and `train_accuracy` in evaluation mode by kind of statistics (`running` for the test alone,
        `population`, or `none` without norms); `saturated`: `before` training, norms on a batch, and `after`, as it
        serves, the share of saturated sigmoids in each layer.
    """
    recipe = case.arm.recipe(case.seed)
    dataset = _rows_of(case, dataset)
    network = case.arm.build(recipe)
    test_images = to_device(dataset.test_images, device)
    epochs: list[dict[str, Any]] = []
    found: dict[str, Any] = {
        "arm": case.arm.name,
        "seed": case.seed,
        "network": case.arm.network,
        "train_rows": len(dataset.train_labels),
        "recipe": recipe.as_dict(),
        "threads": torch.get_num_threads(),
        "revision": revision(),
        "compiled": compiled and recipe.epochs >= WORTH_COMPILING_EPOCHS,
        "diverged": None,
        "epochs": epochs,
        "saturated": {"before": saturated(copy.deepcopy(network).to(device).train(), test_images)},
    }
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)  # of dropout and noise; weights and order have the recipe's seed already
        try:
            fit(
                network,
                dataset,
                recipe,
                device,
                lambda record: epochs.append(_record(record, network, dataset)),
                compiles=found["compiled"],
            )
        except DivergenceError as err:
            return found | {"diverged": str(err), "seconds": time.perf_counter() - start}
    found |= accuracies(network, dataset)
    found["saturated"]["after"] = saturated(network, test_images)
    return found | {"seconds": time.perf_counter() - start}


def accuracies(network: nn.Module, dataset: FashionMNIST) -> dict[str, dict[str, float]]:
    """Return `test_accuracy` and `train_accuracy` by kind of statistics, `running` for the test alone.

    `network` ends with population statistics.
    """
    device = next(network.parameters()).device
    train_images, train_labels = (to_device(a, device) for a in (dataset.train_images, dataset.train_labels))
    test_images, test_labels = (to_device(a, device) for a in (dataset.test_images, dataset.test_labels))
    found: dict[str, dict[str, float]] = {"test_accuracy": {}, "train_accuracy": {}}
    for kind in ("running", "population") if has_norms(network) else ("none",):
        if kind == "population":
            population_statistics(network, train_images)
        found["test_accuracy"][kind] = evaluate(network, test_images, test_labels)
    found["train_accuracy"][kind] = evaluate(network, train_images, train_labels)
    return found


def has_norms(network: nn.Module) -> bool:
    """Return whether any layer of `network` normalises batches."""
    return any(isinstance(module, Norm) for module in network.modules())


@torch.no_grad()
def saturated(network: nn.Module, images: Tensor, *, rows: int = SATURATION_ROWS) -> dict[str, float]:
    """Return sigmoid's name -> share of its values whose slope y·(1 − y) is under a tenth of the steepest.

    Args:
        network: in the mode to be measured; running statistics step when that is training mode.
        images: (N, 1, 28, 28) uint8.
        rows: how many of them are taken, as one batch.
    """
    shares: dict[str, float] = {}

    def look(name: str, y: Tensor) -> None:
        shares[name] = (y * (1 - y) < SATURATED_SLOPE).float().mean().item()

    handles = [
        module.register_forward_hook(lambda _module, _inputs, y, name=name: look(name, y))
        for name, module in network.named_modules()
        if isinstance(module, nn.Sigmoid)
    ]
    try:
        network(scale_pixels(images[:rows]))
    finally:
        for handle in handles:
            handle.remove()
    return shares


def _rows_of(case: Case, dataset: FashionMNIST) -> FashionMNIST:
    if case.arm.is_selection:
        dataset = held_out(dataset)
    return dataset if case.arm.train_rows is None else first_rows(dataset, case.arm.train_rows)


def _record(record: EpochRecord, network: nn.Module, dataset: FashionMNIST) -> dict[str, Any]:
    """Return `record` with the test accuracy of a copy of `network` that has population statistics."""
    values = record.as_dict()
    if not has_norms(network):
        return values
    device = next(network.parameters()).device
    twin = copy.deepcopy(network)
    population_statistics(twin, to_device(dataset.train_images[:EPOCH_ROWS], device))
    images, labels = to_device(dataset.test_images, device), to_device(dataset.test_labels, device)
    return values | {"population_accuracy": evaluate(twin, images, labels)}
