"""A picture -> the pixels of a model's input, as the recipe in the model's own file says; the only place that does it.

Training prepares its examples here, the service its requests and the client what it sends, so that all three get the
same bytes. Needs Pillow, NumPy and `foldserve.format`. What a stranger may send, and how much of it, is no matter of
this package: the service looks at that before.
"""

from .decode import FORMATS, decode, prepare, scale
from .geometry import PictureError, resized_size

__all__ = ["FORMATS", "PictureError", "decode", "prepare", "resized_size", "scale"]
