"""Encoded pictures as a BYTES tensor, in the place of the pixels of a model that states a picture recipe.

An element is a PNG or JPEG file, or one of a format that is switched on, or its base64, as JSON needs it. They are
decoded as those of `/predict` are; whoever reads such a request has it admitted as work first, since to decode can take
seconds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from foldserve.format.image import ImageRecipe
from foldserve.format.picture_types import picture_type

from ..bodies.decoder import decode_image
from ..bodies.free_pictures import stacked
from ..bodies.instances import decode_base64
from ..bodies.limits import Limits
from ..tensors import Array, TensorSpec
from .checks import DeclaredTensor
from .datatypes import BYTES


class Pictures:
    """What a model takes in place of pixels.

    Args:
        recipe: of the model.
        limits: how many pictures, and how large, one request may hold.
    """

    def __init__(self, recipe: ImageRecipe, limits: Limits) -> None:
        self._recipe = recipe
        self._limits = limits
        self.input = recipe.input

    def are_in(self, text: bytes) -> bool:
        """Return whether the JSON of a request may declare pictures; a word may be written with escapes."""
        return b"BYTES" in text or b"\\" in text

    def are_declared(self, declared: Sequence[DeclaredTensor]) -> bool:
        """Return whether the input of pictures is declared as BYTES."""
        return any(tensor.name == self.input and tensor.datatype == BYTES for tensor in declared)

    def specs(self, declared: Sequence[DeclaredTensor], inputs: Sequence[TensorSpec]) -> Sequence[TensorSpec]:
        """Return what the inputs of a request may be: a file a row, as [N] or as [N, 1], where it declares BYTES."""
        if not self.are_declared(declared):
            return inputs
        rank = next(len(tensor.shape) for tensor in declared if tensor.name == self.input)
        shape = (None, 1) if rank == 2 else (None,)
        return [TensorSpec(spec.name, BYTES, shape) if spec.name == self.input else spec for spec in inputs]

    def decoded(self, arrays: Mapping[str, Array], beat: Callable[[], None] | None = None) -> dict[str, Array]:
        """Return the inputs with the pixels of their pictures.

        Args:
            arrays: the inputs of a checked request, by name.
            beat: called while files are decoded; raises when nobody waits for them any more.

        Raises:
            InvalidInput: an element is neither a file that is decoded nor base64 of one, or does not fit the recipe.
            BodyTooLarge: more pixels in all files than one request may have decoded.
        """
        files = arrays[self.input]
        if files.dtype != object:
            return dict(arrays)
        budget = replace(self._limits, beat=beat).pixel_budget()
        images = []
        for index, file in enumerate(files.ravel()):
            place = self._place(index)
            decode = decode_base64 if picture_type(file) is None else decode_image  # no base64 begins like a file
            images.append(decode(file, self._recipe, budget, place))
        return {**arrays, self.input: stacked(images, self._recipe, self._limits, self._place)}

    def _place(self, index: int) -> str:
        return f"input {self.input!r}[{index}]"
