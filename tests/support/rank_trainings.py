"""Small trainings in float64 that `torchrun` starts on several ranks; rank 0 writes what they gave to the path given.

torchrun --standalone --nproc-per-node 2 -m tests.support.rank_trainings OUT.pt
"""

import sys

import torch

from foldserve.training.config import Recipe
from foldserve.training.dataset import scale_pixels
from foldserve.training.fit import fit
from foldserve.training.model import build
from foldserve.training.ranks import ALONE, Ranks, launched, leave
from foldserve.training.statistics import population_statistics
from tests.training.conftest import made_up_data

ROWS = 352
RECIPES = {
    "book": Recipe(epochs=2, batch_size=64),
    # 7 batches of 50 rows and one of 2: on 3 ranks one of them has no row of that.
    "mirrored, two rows last": Recipe(epochs=2, batch_size=50, learning_rate=0.01, augment="mirror", tail="last"),
    "by hand, biased": Recipe(epochs=2, batch_size=64, norm="scratch", variance="biased"),
    "muon, max": Recipe(epochs=2, batch_size=64, optimizer="muon", learning_rate=0.05, schedule="linear", pool="max"),
    "no norms": Recipe(epochs=2, batch_size=64, norm="none", statistics="none", optimizer="adam", learning_rate=0.01),
}


def trained(ranks: Ranks = ALONE) -> dict[str, dict[str, object]]:
    """Return what each recipe gives: epochs' records, weights with running and with population statistics."""
    data = made_up_data(ROWS)
    results = {}
    for name, recipe in RECIPES.items():
        model = build(recipe)
        if ranks.rank:  # what rank 0 starts with counts
            torch.nn.init.zeros_(model.conv1.weight)
        history = fit(model, data, recipe, torch.device("cpu"), ranks=ranks, dtype=torch.float64)
        results[name] = {
            "epochs": [(each.loss, each.train_accuracy, each.test_accuracy) for each in history.epochs],
            "logits": model(scale_pixels(torch.as_tensor(data.test_images), torch.float64)).detach(),
            "running": {key: value.clone() for key, value in model.state_dict().items()},
        }
        if recipe.norm != "none":
            images = torch.as_tensor(data.train_images)
            population_statistics(model, images, mirrored=recipe.augment == "mirror", ranks=ranks)
        results[name]["population"] = model.state_dict()
    return results


def main() -> None:
    with launched() as ranks:
        results = trained(ranks)
        weights = [tensor.double() for each in results.values() for tensor in each["running"].values()]
        own = torch.cat([tensor.flatten() for tensor in weights])
        parts = ranks.gathered(own)
        assert all(torch.equal(part, own) for part in parts), "the ranks ended with different weights"
        if ranks.rank == 0:
            torch.save({"world_size": ranks.world_size, "results": results}, sys.argv[1])


if __name__ == "__main__":
    main()
    leave(0)
