"""Weights to start from, for fine-tuning: what fits the network is taken from a file, and what does not is said.

Before the training loop. A file is a run's `model.safetensors`, or anybody's state dict; the number of classes may
differ, and then the last layer starts anew.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from .errors import ConfigError
from .user_model.weights_file import read_state_dict

_STATISTICS = ("running/", "population/")  # how a run's file names its buffers; the later one is taken


@dataclass(frozen=True, eq=False)
class Initial:
    """What a network starts from.

    Attributes:
        tensors: entries of its state dict.
        left_out: entries of the file that the network has no place for, each with the reason.
        drawn: entries of the network that the file has nothing for.
        digest: SHA-256 of the file.
    """

    tensors: Mapping[str, Tensor]
    left_out: tuple[str, ...]
    drawn: tuple[str, ...]
    digest: str

    def __str__(self) -> str:
        lines = [f"{len(self.tensors)} tensors taken from the initial weights"]
        lines += [f"  left out: {entry}" for entry in self.left_out]
        lines += [f"  drawn by the seed: {name}" for name in self.drawn]
        return "\n".join(lines)


def read_initial(path: Path, network: nn.Module) -> Initial:
    """Return what `network` can start from in the weights file at `path`.

    Raises:
        ConfigError: the file cannot be read, or nothing in it fits.
    """
    given = _by_name(read_state_dict(path))
    expected = network.state_dict()
    taken, left_out = {}, []
    for name, tensor in given.items():
        if name not in expected:
            left_out.append(f"{name} {tuple(tensor.shape)}, which the network has not")
        elif tensor.shape != expected[name].shape:
            left_out.append(f"{name} {tuple(tensor.shape)}, the network has {tuple(expected[name].shape)}")
        else:
            taken[name] = tensor
    learned = {name for name, _ in network.named_parameters()}
    if not learned & set(taken):
        raise ConfigError(
            f"--init {path}: none of its {len(given)} tensors fits the network; expected weights of the same --network"
        )
    drawn = tuple(name for name in expected if name not in taken)
    return Initial(taken, tuple(left_out), drawn, hashlib.sha256(path.read_bytes()).hexdigest())


def _by_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries under the names of a state dict; a run's file has its buffers once for each statistics."""
    named = {name: tensor for name, tensor in tensors.items() if not name.startswith(_STATISTICS)}
    for kind in _STATISTICS:
        named |= {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}
    return named
