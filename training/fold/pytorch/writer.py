"""What both ways of writing a result share: a copy of a model that takes new parameters and remembers their values.

Before `write_module` and `write_graph`, each of which says where a parameter goes.
"""

import torch
from torch import Tensor, nn

from .float64 import named_tensors, tensor_named
from .parameters import Value


class Writer:
    """A model that takes new parameters, and remembers the float64 value of each.

    Attributes:
        model: a copy; changed in place.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._values: list[tuple[Tensor, Value]] = []

    def exact(self) -> dict[str, Value]:
        """Return the float64 values of the changed parameters that are still in use, by qualified name."""
        names = {id(tensor): name for name, tensor in named_tensors(self.model)}
        return {names[id(tensor)]: value for tensor, value in self._values if id(tensor) in names}

    def store(self, name: str, value: Value) -> None:
        """Give a parameter its rounded value; dtype, device, shape and strides stay."""
        tensor = tensor_named(self.model, name)
        new = torch.empty_like(tensor.detach())  # keeps channels_last and other dense strides
        # The dtype holds every value exactly: it was rounded to it before.
        tensor.data = new.copy_(torch.from_numpy(value.stored.reshape(tuple(tensor.shape))))
        self.remember(tensor, value)

    def remember(self, tensor: Tensor, value: Value) -> None:
        """Note the float64 value of a parameter that holds its rounding already."""
        self._values.append((tensor, value))
