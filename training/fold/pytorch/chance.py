"""Generators of Python and NumPy that give other numbers: the same one again and again, from zero to almost one.

Used by `look` for a forward that draws numbers. What draws from PyTorch's own generator needs none of this: a choice
by a value of a tensor cannot be read.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from .circumstances import Circumstance
from .process_state import same_random_state

DRAWS = "random numbers of Python or NumPy"  # what a forward asks, by name
_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1 - 2.0**-32)
_WORDS = 624  # of the Mersenne twister, MT19937: Matsumoto and Nishimura 1998


def state_of_generators() -> tuple[Any, ...]:
    """Return what tells whether numbers were drawn in between."""
    name, words, position, *more = np.random.get_state(legacy=True)
    return random.getstate(), name, words.tobytes(), position, *more  # type: ignore[union-attr]


def chances(generators: list[Any] | tuple[Any, ...] = ()) -> tuple[Circumstance, ...]:
    """Return circumstances in which Python's and NumPy's generators give a part of their range, each another one.

    Args:
        generators: more of them, of Python or NumPy.
    """
    return tuple(
        Circumstance(f"when chance gives {share:.3g}", frozenset({DRAWS}), _giving(share, generators))
        for share in _SHARES
    )


def _giving(share: float, generators: Any) -> Callable[[], AbstractContextManager[None]]:
    word = _untempered(int(share * 2**32))

    @contextmanager
    def giving() -> Iterator[None]:
        before = [(one, _state(one)) for one in generators]
        with same_random_state():
            random.setstate((3, (word,) * _WORDS + (0,), None))
            np.random.set_state(_twister(word))
            try:
                for one in generators:
                    _give(one, word, share)
                yield
            finally:
                for one, state in before:
                    _put_back(one, state)

    return giving


def _twister(word: int) -> dict[str, Any]:
    return {"bit_generator": "MT19937", "state": {"key": np.full(_WORDS, word, np.uint32), "pos": 0}}


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def _put_back(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _give(generator: Any, word: int, share: float) -> None:
    if isinstance(generator, random.Random):
        generator.setstate((3, (word,) * _WORDS + (0,), None))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_twister(word))
    else:  # of another kind: the first of a thousand seeds whose first number is near
        kind = type(generator.bit_generator)
        seeds = (kind(seed) for seed in range(1_000))
        near = next((one for one in seeds if abs(np.random.Generator(kind_copy(one)).random() - share) < 0.01), None)
        if near is not None:
            generator.bit_generator.state = near.state


def kind_copy(bits: Any) -> Any:
    """Return a bit generator in the same state."""
    copied = type(bits)(0)
    copied.state = bits.state
    return copied


def _untempered(output: int) -> int:
    """Return the word of the Mersenne twister's state from which it gives `output`; see `_WORDS`."""
    word = output ^ (output >> 18)
    word ^= (word << 15) & 0xEFC60000
    tempered = word
    for _ in range(5):
        word = tempered ^ ((word << 7) & 0x9D2C5680)
    tempered = word = word & 0xFFFFFFFF
    for _ in range(3):
        word = tempered ^ (word >> 11)
    return word & 0xFFFFFFFF
