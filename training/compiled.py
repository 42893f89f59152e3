"""The forward pass of a training step, and with it the backward pass, through PyTorch's compiler.

The training loop takes it for its full batches with `--compile`; the odd batch and the evaluation run the network
itself, whose parameters and buffers both share. It compiles nothing before it is first called.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .errors import DeviceError

# Below it, compiling takes longer than it saves; what one training compiled, the next finds in PyTorch's cache.
WORTH_COMPILING_EPOCHS = 5


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that computes `network(x)` for batches of one size; its state is the network's own.

    Calling it raises DeviceError where PyTorch cannot compile: on a CPU it needs a C++ compiler.
    """
    run = torch.compile(network, dynamic=False)

    def forward(x: Tensor) -> Tensor:
        try:
            logits: Tensor = run(x)
        except torch._dynamo.exc.TorchDynamoException as err:
            reason = str(err).strip().splitlines()[0]
            raise DeviceError(
                f"--compile: PyTorch cannot compile on this machine ({reason}); install a C++ compiler such as g++, or "
                "leave --compile out"
            ) from err
        return logits

    return forward
