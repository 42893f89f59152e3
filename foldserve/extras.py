"""The optional parts of an installation: which packages belong to which extra, and what to type when one is missing."""

import importlib.util
from collections.abc import Sequence

# Extra -> modules that come with it. `foldserve.training` is in every wheel and not in the service's image.
MODULES = {
    "training": ("foldserve.training", "torch", "onnx", "onnxscript", "safetensors", "matplotlib", "tqdm"),
    "cpu": ("onnxruntime",),
    "client": ("httpx",),
    "pull": ("fsspec", "s3fs"),
}


def what_to_install(err: ModuleNotFoundError, extras: Sequence[str]) -> str | None:
    """Return one sentence that names the extras to install, None when what is missing belongs to none of `extras`."""
    missing = err.name or ""
    modules = [module for extra in extras for module in MODULES[extra]]
    if not any(missing == module or missing.startswith(f"{module}.") for module in modules):
        return None
    lacking = [extra for extra in extras if any(importlib.util.find_spec(module) is None for module in MODULES[extra])]
    return f"{missing} is not installed: pip install 'foldserve[{','.join(lacking)}]'"
