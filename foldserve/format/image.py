"""How a picture becomes a row of a model's input; the graph's metadata states it, the service acts on it."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """Size in pixels, value range, and what the grey levels mean.

    Attributes:
        input: name of the graph's input, uint8 (N, channels, height, width).
        height: of an image, in pixels.
        width: of an image, in pixels.
        channels: 1 for grey.
        range: least and largest value of a pixel.
        polarity: `light-on-dark` or the other way round.
        background: value of a pixel where an image shows nothing.
        grey: how colours become grey.
    """

    input: str
    height: int
    width: int
    channels: int
    range: tuple[int, int]
    polarity: str
    background: int
    grey: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"range": list(self.range)}
