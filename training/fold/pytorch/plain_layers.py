"""Networks made of PyTorch's own layers alone, one after the other: they choose by nothing, and keep nothing of a call.

Used where a network of the user's has to be looked at, or copied before it runs. Neither is needed for those whose
every line is known, what was folded from such a network among them: a forward of the user's, a hook or a tensor of
another class makes them any network.
"""

import torch
from torch import Tensor, nn

from .guarded_classes import unguarded_class

# fmt: off
_PLAIN = frozenset({
    nn.Sequential, nn.Identity, nn.Flatten, nn.Linear, nn.LayerNorm,
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign, nn.Softmax2d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.PixelShuffle, nn.PixelUnshuffle,
})
# fmt: on
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
_CALLED = ("forward", "_call_impl", "__call__")


def has_plain_layers_only(model: nn.Module) -> bool:
    """True for a network in eval mode whose modules are all PyTorch's own and as they were made, without hooks."""
    if any(getattr(nn.modules.module, name) for name in _GLOBAL_HOOKS):
        return False
    return all(map(_is_plain, model.modules()))


def _is_plain(module: nn.Module) -> bool:
    own = vars(module)
    if unguarded_class(type(module)) not in _PLAIN or module.training or any(own.get(name) for name in _HOOKS):
        return False
    if own.get("_compiled_call_impl") is not None or any(name in own for name in _CALLED):
        return False
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return False  # it takes the statistics of its input, and asks how many values there are
    tensors = [*module._parameters.values(), *module._buffers.values()]
    plain = (nn.Parameter, Tensor)
    return all(one is None or (type(one) in plain and one.layout is torch.strided) for one in tensors)
