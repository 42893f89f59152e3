"""Made-up measurements of studies, for the tests of their reports."""

from foldserve.training.studies import plan
from foldserve.training.studies.arms import cases_of

ORIGIN = {
    "command": "foldserve compare",
    "revision": "unknown",
    "environment": {
        "python": "3.11",
        "packages": {"torch": "2", "numpy": "2"},
        "cpu": "any",
        "cpu_count": 2,
        "gpu": None,
    },
}
STUDIES = plan.studies(8)
CASES = plan.in_turns(STUDIES.values())


def measured_as(case, *, loss=0.27, train=0.901, running=0.82, population=0.887, diverged=None):
    """Return a measurement of `case` whose last epoch has these figures; statistics differ a little by seed."""
    recipe = case.arm.recipe(case.seed)
    has_norms = recipe.norm != "none"
    step = (case.seed % 8 - 3.5) / 100
    epochs = [
        {
            "epoch": epoch,
            "loss": loss + 0.3 * (1 - epoch / recipe.epochs),
            "train_accuracy": train - 0.2 * (1 - epoch / recipe.epochs),
            "test_accuracy": running + step,
            **({"population_accuracy": population + step / 10} if has_norms else {}),
        }
        for epoch in range(1, recipe.epochs + 1)
    ]
    tests = {"running": running + step, "population": population + step / 10} if has_norms else {"none": running}
    kind = "population" if has_norms else "none"
    shares = {f"sigmoid{layer}": 0.01 * layer for layer in range(1, 5)}
    found = {
        "arm": case.arm.name,
        "seed": case.seed,
        "recipe": recipe.as_dict(),
        "epochs": epochs,
        "seconds": 1.0,
        "origin": ORIGIN,
    }
    found |= {"train_rows": 60_000, "diverged": diverged, "saturated": {"before": shares, "after": shares}}
    if diverged:
        return found | {"epochs": []}
    return found | {"test_accuracy": tests, "train_accuracy": {kind: tests[kind] + 0.02}}


def whole_study():
    """Return measurements of every case: like the published ones, without norms slow, and divergence at rate 10."""
    found = {}
    for case in CASES:
        is_none = case.arm.recipe(0).norm == "none"
        is_broken = case.arm.name == "lr-none-10"
        found[case.key] = measured_as(
            case,
            loss=1.9 if is_none else 0.27,
            train=0.5 if is_none else 0.901,
            diverged="the loss became nan in epoch 1 at step 3 of 235; lower --lr" if is_broken else None,
        )
    return found


def seeds_with(**changes):
    return [measured_as(case, **changes) for case in cases_of([plan.TORCH], 8)]
