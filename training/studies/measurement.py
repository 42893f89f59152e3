"""One case of a study trained and measured: figures as plain JSON values.

Every case is measured in the same way, so that any two can be compared. It prints and writes nothing.
"""

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

from ..batchnorm import BatchNormLayer
from ..compiled import WORTH_COMPILING_EPOCHS
from ..dataset import FashionMNIST, Tensors, scale_pixels
from ..errors import DivergenceError
from ..fit import EpochRecord, evaluate, fit
from ..statistics import population_statistics
from .arms import Case
from .selection import first_rows, held_out

SATURATION_ROWS = 2_000  # test images on which saturation is measured
SATURATED_SLOPE = 0.025  # a tenth of a sigmoid's steepest slope, 1/4; |x| > 3.6


def measure(case: Case, dataset: FashionMNIST, device: torch.device, *, compiled: bool = False) -> dict[str, Any]:
    """Return what training `case` gave.

    A case that diverges is a result too: it has `diverged` with the reason, and the figures until then.

    Args:
        case: what to train.
        dataset: to train and test on.
        device: of every step.
        compiled: whether steps of longer trainings go through `torch.compile`, which rounds otherwise and is faster.

    Returns:
        `arm`, `seed`, `recipe`, `network`, `train_rows`, `threads`, `compiled`, `seconds`, and `diverged`
        with the reason or None; `epochs`: one record each, with `population_accuracy` where there are norms;
        `test_accuracy` and `train_accuracy` in evaluation mode by kind of statistics (`running` for the test alone,
        `population`, or `none` without norms); `saturated`: `before` training, norms on a batch, and `after`, as it
        serves, the share of saturated sigmoids in each layer.
    """
    recipe = case.arm.recipe(case.seed)
    dataset = _rows_of(case, dataset)
    data = dataset.on(device)
    network = case.arm.build(recipe)
    mirrored = recipe.augment == "mirror"
    epochs: list[dict[str, Any]] = []
    measured: dict[str, Any] = {
        "arm": case.arm.name,
        "seed": case.seed,
        "network": case.arm.network,
        "train_rows": len(dataset.train_labels),
        "recipe": recipe.as_dict(),
        "threads": torch.get_num_threads(),
        "compiled": compiled and recipe.epochs >= WORTH_COMPILING_EPOCHS,
        "diverged": None,
        "epochs": epochs,
        "saturated": {"before": saturated(copy.deepcopy(network).to(device).train(), data.test_images)},
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
                lambda record: epochs.append(_record(record, network, data, mirrored, case.arm.epoch_rows)),
                compiles=measured["compiled"],
            )
        except DivergenceError as err:
            return measured | {"diverged": str(err), "seconds": time.perf_counter() - start}
    measured |= accuracies(network, data, mirrored=mirrored)
    measured["saturated"]["after"] = saturated(network, data.test_images)
    return measured | {"seconds": time.perf_counter() - start}


def accuracies(network: nn.Module, data: Tensors, *, mirrored: bool) -> dict[str, dict[str, float]]:
    """Return `test_accuracy` and `train_accuracy` by kind of statistics, `running` for the test alone.

    `network` ends with population statistics, over mirror images too when it was trained on them.
    """
    test: dict[str, float] = {}
    for kind in ("running", "population") if has_norms(network) else ("none",):
        if kind == "population":
            population_statistics(network, data.train_images, mirrored=mirrored)
        test[kind] = evaluate(network, data.test_images, data.test_labels)
    train = {kind: evaluate(network, data.train_images, data.train_labels)}
    return {"test_accuracy": test, "train_accuracy": train}


def has_norms(network: nn.Module) -> bool:
    """Return whether any layer of `network` normalises batches."""
    return any(isinstance(module, BatchNormLayer) for module in network.modules())


@torch.no_grad()
def saturated(network: nn.Module, images: Tensor, *, rows: int = SATURATION_ROWS) -> dict[str, float]:
    """Return sigmoid's name -> share of its values whose slope y·(1 − y) is under a tenth of the steepest.

    Args:
        network: in the mode to be measured; running statistics step when that is training mode.
        images: (N, 1, 28, 28) uint8.
        rows: how many of them are taken, as one batch.
    """
    shares: dict[str, float] = {}

    def note(name: str, y: Tensor) -> None:
        shares[name] = (y * (1 - y) < SATURATED_SLOPE).float().mean().item()

    handles = [
        module.register_forward_hook(lambda _module, _inputs, y, name=name: note(name, y))
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


def _record(record: EpochRecord, network: nn.Module, data: Tensors, mirrored: bool, rows: int) -> dict[str, Any]:
    """Return `record` with the test accuracy of a copy of `network` that has population statistics of `rows` images."""
    values = record.as_dict()
    if has_norms(network):
        twin = copy.deepcopy(network)
        population_statistics(twin, data.train_images[:rows], mirrored=mirrored)
        values["population_accuracy"] = evaluate(twin, data.test_images, data.test_labels)
    return values
