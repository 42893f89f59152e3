"""The door to `images`: its library takes as long to import as a model to load, so that waits until it is needed.

Whichever thread decodes the first file imports it, unless `load` was called before. The event loop never does, since
`bodies.is_quick` leaves a file to a thread until then.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from foldserve.format.image import ImageRecipe

    from .limits import PixelBudget

_LIBRARY = "foldserve.service.bodies.images"


def load() -> None:
    """Import the library; from then on a small file is decoded fast, wherever that happens."""
    importlib.import_module(_LIBRARY)


def is_loaded() -> bool:
    """Whether an image can be decoded without an import before it."""
    return _LIBRARY in sys.modules


def decode_image(data: bytes, spec: ImageRecipe, budget: PixelBudget, place: str = "image") -> NDArray[np.uint8]:
    """Return the pixels of an image file; see `images.decode_image`."""
    from . import images

    return images.decode_image(data, spec, budget, place)
