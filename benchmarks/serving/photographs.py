"""What decoding a photograph costs and moves: in whole, at a part of its size, and by another library.

    python -m benchmarks.serving.photographs --rounds 5

Made pictures, saved by Pillow as JPEG of quality 90: a smooth one, one with the spectrum of a photograph (1/f), one of
noise and one of hard edges. CPU time of decoding and of the resize to 256 by the recipe `imagenet`; how far the values
of the answer's pixels are from those of the exact recipe. `simplejpeg` is measured where it is installed.
"""

import argparse
import io
import statistics as stats
import sys
import time
from dataclasses import replace

import numpy as np
from PIL import Image

from foldserve.format.image import ImageRecipe
from foldserve.pictures.decode import decode

SIZES = {"12 MP": (3000, 4000), "0.3 MP": (480, 640)}
EXACT = ImageRecipe(height=224, width=224, rule="shorter", resize=(256,), crop=(224, 224))


def photograph(kind: str, height: int, width: int, *, is_progressive: bool = False) -> bytes:
    """Return a JPEG file of one kind."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    rng = np.random.default_rng(0)
    if kind == "smooth":
        plane = 127 + 100 * np.sin(x / 97) * np.cos(y / 61)
    elif kind == "noise":
        plane = rng.uniform(0, 255, (height, width)).astype(np.float32)
    elif kind == "edges":
        plane = np.where((x // 61 + y // 47) % 2, 230.0, 20.0)
    else:
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
        spectrum = np.fft.rfft2(rng.normal(size=(height, width))) / np.maximum(frequency, 1 / max(height, width))
        plane = np.fft.irfft2(spectrum, s=(height, width)).astype(np.float32)
        plane = (plane - plane.mean()) / plane.std() * 50 + 127
    pixels = np.stack([plane, plane * 0.8 + 20, 255 - plane], axis=-1).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, progressive=is_progressive)
    return file.getvalue()


def milliseconds(call: object, data: bytes, rounds: int) -> float:
    """Return the median CPU time of a call."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        call(data)  # type: ignore[operator]
        times.append(time.process_time() - started)
    return stats.median(times) * 1000


def pillow(data: bytes) -> None:
    """Decode in whole with Pillow."""
    Image.open(io.BytesIO(data)).load()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    scaled = replace(EXACT, decoding="scaled")
    ways = {
        "Pillow, whole": pillow,
        "recipe, exact": lambda data: decode(data, EXACT),
        "recipe, scaled": lambda data: decode(data, scaled),
    }
    try:
        import simplejpeg

        ways["simplejpeg, whole"] = lambda data: simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False)
    except ImportError:
        pass
    print(f"| picture | {' | '.join(f'{name}, ms' for name in ways)} | scaled moves values by at most; 99.9 %; mean |")
    print("|---|" + "---|" * (len(ways) + 1))
    for size, sides in SIZES.items():
        for kind in ("smooth", "1/f", "noise", "edges"):
            for is_progressive in (False, True):
                data = photograph(kind, *sides, is_progressive=is_progressive)
                costs = [milliseconds(way, data, rounds) for way in ways.values()]
                moved = np.abs(decode(data, scaled).astype(int) - decode(data, EXACT))
                name = f"{size}, {kind}{', progressive' * is_progressive}, {len(data) / 1e6:.2f} MB"
                moves = f"{moved.max()}; {np.percentile(moved, 99.9):.0f}; {moved.mean():.2f}"
                print(f"| {name} | {' | '.join(f'{cost:.1f}' for cost in costs)} | {moves} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
