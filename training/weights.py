"""The trained, unfolded network as one safetensors file: its parameters and each set of statistics.

A run leaves it beside its figures; `verify --weights`, `inspect` and the studies read it. It neither trains nor folds.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .config import Recipe
from .dataset import Interface
from .errors import CheckpointError, TrainingError
from .model import build

WEIGHTS_NAME = "model.safetensors"
MANIFEST_KEY = "foldserve"

# safetensors keeps its header's entries in no fixed order: one entry, holding JSON, gives the same bytes every time.
_STATISTICS = ("running", "population")


@dataclass(frozen=True)
class Weights:
    """The trained, unfolded network with each set of statistics that was measured.

    Attributes:
        recipe: what made it.
        parameters: state-dict name -> learned values.
        statistics: `running` and, where there are norms, `population` -> state-dict name -> buffer.
        interface: images and classes that the network is for.
    """

    recipe: Recipe
    parameters: Mapping[str, Tensor]
    statistics: Mapping[str, Mapping[str, Tensor]]
    interface: Interface = field(default_factory=Interface)

    def network(self, statistics: str) -> nn.Module:
        """Return the unfolded network in eval mode on the CPU, serving with `statistics`.

        Raises:
            CheckpointError: these statistics are not there, or the tensors do not fit the recipe's network.
        """
        if statistics != "none" and statistics not in self.statistics:
            raise CheckpointError(f"the weights hold statistics {sorted(self.statistics)}, not {statistics!r}")
        network = build(self.recipe, self.interface)
        try:
            network.load_state_dict({**self.parameters, **self.statistics.get(statistics, {})})
        except RuntimeError as err:
            raise CheckpointError(f"the weights do not fit the network of their recipe: {err}") from err
        return network.eval()


def weights_to_bytes(weights: Weights) -> bytes:
    """Return the content of model.safetensors: parameters by name, buffers as `<statistics>/<name>`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.parameters.items()}
    for kind, buffers in weights.statistics.items():
        tensors |= {f"{kind}/{name}": buffer.detach().cpu().contiguous() for name, buffer in buffers.items()}
    entry = {"format": 1, "recipe": weights.recipe.as_dict(), "interface": asdict(weights.interface)}
    header = {MANIFEST_KEY: json.dumps(entry, sort_keys=True)}
    return safetensors.torch.save(tensors, header)


def read_weights(path: Path) -> Weights:
    """Return what `weights_to_bytes` wrote to `path`.

    Raises:
        CheckpointError: the file cannot be read, was cut off, or was not written by a run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping, only keys()
        entry = json.loads(header[MANIFEST_KEY])
        recipe, interface = Recipe(**entry["recipe"]), _interface(entry.get("interface"))
    except (OSError, SafetensorError) as err:
        raise CheckpointError(f"{path} cannot be read as safetensors ({err}); expected a run's {WEIGHTS_NAME}") from err
    except (KeyError, TypeError, ValueError, TrainingError) as err:
        raise CheckpointError(f"{path} names no recipe of ours ({err}); expected a run's {WEIGHTS_NAME}") from err
    statistics = {
        kind: {name.removeprefix(f"{kind}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}/")}
        for kind in _STATISTICS
    }
    return Weights(
        recipe=recipe,
        parameters={name: tensor for name, tensor in tensors.items() if "/" not in name},
        statistics={kind: buffers for kind, buffers in statistics.items() if buffers},
        interface=interface,
    )


def _interface(stated: Mapping[str, Any] | None) -> Interface:
    """Return what the file states; before it did, every network was for Fashion-MNIST."""
    if stated is None:
        return Interface()
    channels, height, width = (int(size) for size in stated["image_shape"])
    return Interface((channels, height, width), int(stated["classes"]))


def buffers_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the buffers that `network`'s state dict holds."""
    learned = {name for name, _ in network.named_parameters()}
    state = network.state_dict()
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items() if name not in learned}


def parameters_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of what `network` has learned."""
    return {name: parameter.detach().cpu().clone() for name, parameter in network.named_parameters()}
