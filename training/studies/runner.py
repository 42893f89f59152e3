"""The cases of a study trained one after another or side by side, each kept in the store as soon as it is measured.

A study that was killed continues with the cases that are missing. What is measured is `measurement`'s business.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch

from foldserve.patience import shown, tell

from ..dataset import FashionMNIST
from ..errors import ConfigError
from .arms import Case
from .measurement import measure
from .store import Store


def measure_cases(
    cases: Sequence[Case],
    store: Store,
    device: torch.device,
    load_dataset: Callable[[], FashionMNIST],
    origin: Mapping[str, Any],
    *,
    jobs: int = 1,
    compiled: bool = False,
    report: Callable[[str], None] = tell,
) -> int:
    """Measure every case that `store` does not hold, and return how many that were.

    Args:
        cases: in the order in which they start.
        store: where measurements are and go.
        device: of every training.
        load_dataset: gives the images of every case; called when there is something to measure.
        origin: kept with every measurement that is made now; earlier ones keep their own.
        jobs: processes side by side, each with one thread.
        compiled: as for `measure`.
        report: takes a line about each finished case.

    Raises:
        ConfigError: the store holds a case of another recipe under the same name.
        TrainingError: a case failed otherwise than by diverging; finished cases are kept.
    """
    kept = store.read()
    _check_same(cases, kept)
    missing = [case for case in cases if case.key not in kept]
    if not missing:
        report(f"nothing to train: {store.path} holds all {len(cases)} trainings; choose another --out to train anew")
        return 0
    report(f"{len(cases) - len(missing)} of {len(cases)} trainings are in {store.path}, {len(missing)} to do")
    done = 0
    measured = _measured(missing, device, load_dataset(), jobs, compiled)
    with shown(lambda: f"training {done + 1} of {len(missing)}"):
        for case, measurement in measured:
            store.add(case.key, {**measurement, "origin": origin})
            done += 1
            report(f"{done}/{len(missing)}  {summary(measurement)}")
    return len(missing)


def summary(measurement: dict[str, Any]) -> str:
    """Return a line for people about a measurement."""
    head = f"{measurement['arm']} seed {measurement['seed']}: "
    if measurement["diverged"]:
        return f"{head}{measurement['diverged']}"
    last = measurement["epochs"][-1]
    tests = "  ".join(f"test {kind} {value:.4f}" for kind, value in measurement["test_accuracy"].items())
    return head + (
        f"loss {last['loss']:.4f}  train {last['train_accuracy']:.4f}  {tests}  {measurement['seconds']:.0f} s"
    )


def _measured(
    cases: Sequence[Case], device: torch.device, dataset: FashionMNIST, jobs: int, compiled: bool
) -> Iterator[tuple[Case, dict[str, Any]]]:
    if jobs == 1:
        for case in cases:
            yield case, measure(case, dataset, device, compiled=compiled)
        return
    # Started afresh rather than forked: a forked process inherits PyTorch's threads in an unknown state.
    with ProcessPoolExecutor(jobs, get_context("spawn"), _set_up_process, (dataset, device.type, compiled)) as pool:
        running = {pool.submit(_work, case): case for case in cases}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_shared: list[tuple[FashionMNIST, str, bool]] = []  # in a worker process: what all its cases share, sent once


def _set_up_process(dataset: FashionMNIST, device: str, compiled: bool) -> None:
    torch.set_num_threads(1)
    _shared.append((dataset, device, compiled))


def _work(case: Case) -> dict[str, Any]:
    dataset, device, compiled = _shared[0]
    return measure(case, dataset, torch.device(device), compiled=compiled)


def _check_same(cases: Sequence[Case], kept: dict[str, dict[str, Any]]) -> None:
    for case in cases:
        if case.key not in kept:
            continue
        before, now = kept[case.key]["recipe"], case.arm.recipe(case.seed).as_dict()
        changed = [name for name in before if name in now and before[name] != now[name]]
        if changed:
            raise ConfigError(
                f"{case.key} was measured with {changed[0]} {before[changed[0]]}, now it is {now[changed[0]]}; "
                "choose another --out, or move its figures away"
            )
