"""The hyperparameters of one training as a frozen value, and the presets that name good sets of them.

First on the way: everything to its right reads a `Recipe` and nothing reads the command line. It checks what can be
checked without data or a device; what depends on the size of the data is checked by `fit`.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any

from .errors import ConfigError

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "pool": ("avg", "max"),
        "norm": ("torch", "scratch", "none"),
        "statistics": ("population", "running", "best", "none"),
        "tail": ("first", "last"),
        "optimizer": ("sgd", "adam", "muon"),
        "schedule": ("constant", "linear"),
        "augment": ("none", "mirror"),
        "variance": ("unbiased", "biased"),
        "keep": ("last", "best"),
    }
)
NETWORKS = ("lenet-bn", "mlp", "resnet-small")
LARGEST_SEED = 2**63 - 1  # what torch.manual_seed takes without wrapping
LARGEST_RATE = 1e37  # what Adam's first steps make of it, ten times as much, is a float32 still


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training, complete: the same recipe on the same machine and thread count gives the same weights.

    Attributes:
        preset: the name it started from, one of `PRESETS`.
        pool: pooling of the convolutional part, `avg` or `max`.
        norm: batch normalization by PyTorch (`torch`), by hand (`scratch`) or left out (`none`).
        epochs: passes over the training set, at least 1.
        learning_rate: step size, above 0 and at most 1e37; with the schedule `linear` the largest one.
        optimizer: plain SGD (`sgd`), `adam`, or `muon` for the hidden matrices beside Adam for the rest.
        schedule: learning rate `constant`, or `linear`: up over a tenth of the steps, then down to 0.
        augment: `mirror` turns a random half of each epoch's images left to right, `none` leaves them.
        batch_size: rows of a step; one step of each epoch takes the remainder.
        tail: whether that step is an epoch's `first` or its `last`. The book's loader leaves it last; but at learning
            rate 1.0 a step on 96 rows moves the weights so far that it decides the accuracy of the whole run, so
            here it comes first and the run ends with a full batch.
        seed: of the initial weights and of the order of the rows, 0 to 2**63 - 1.
        variance: which variance the hand-written norms average for evaluation: `unbiased`, divisor n - 1, as PyTorch's
            layers do, or `biased`, divisor n, as the book's do.
        network: one of `NETWORKS`, or `package.module:factory` for a network of one's own.
        keep: the weights of the `last` epoch, or those of the `best` one by the images held out (--val).
        init: SHA-256 of the safetensors file that the training starts from; empty: from weights by the seed.
        statistics: which mean and variance the norms serve with: `population` (recomputed over the training set with
            the weights frozen), `running` (the exponential averages of training), `best` (of the two by the images
            held out; population where they are equal, or none are held out), or `none` without norms.

    Raises:
        ConfigError: a value is out of its range, or two options contradict each other; the message names the flag.
    """

    preset: str = "book"
    pool: str = "avg"
    norm: str = "torch"
    epochs: int = 10
    learning_rate: float = 1.0
    batch_size: int = 256
    tail: str = "first"
    seed: int = 0
    statistics: str = "population"
    optimizer: str = "sgd"
    schedule: str = "constant"
    augment: str = "none"
    variance: str = "unbiased"
    network: str = "lenet-bn"
    keep: str = "last"
    init: str = ""

    def __post_init__(self) -> None:
        _check_choice("--preset", self.preset, PRESETS)
        for name, allowed in CHOICES.items():
            _check_choice(f"--{name}", getattr(self, name), allowed)
        if self.network not in NETWORKS and not self.is_own_network:
            raise ConfigError(
                f"--network {self.network}: expected {', '.join(NETWORKS)}, or package.module:factory for your own"
            )
        _check_integer("--epochs", self.epochs, 1, 1_000_000)
        _check_integer("--batch-size", self.batch_size, 1, 60_000)
        _check_integer("--seed", self.seed, 0, LARGEST_SEED)
        _check_learning_rate(self.learning_rate)
        self._check_pairs()

    def _check_pairs(self) -> None:
        if self.norm == "none" and self.statistics != "none":
            raise ConfigError(
                f"--statistics {self.statistics} with --norm none: a network without norms has no statistics; "
                "leave --statistics out or choose --norm torch"
            )
        if self.norm != "none" and self.statistics == "none":
            raise ConfigError(
                f"--statistics none with --norm {self.norm}: the norms cannot serve without statistics; "
                "choose population or running"
            )
        if self.variance == "biased" and self.norm != "scratch":
            raise ConfigError(
                f"--variance biased with --norm {self.norm}: only the hand-written norms can average the biased "
                "variance; choose --norm scratch"
            )
        if self.norm != "none" and self.batch_size == 1:
            raise ConfigError(
                f"--batch-size 1 with --norm {self.norm}: the variance of one value is 0 and every norm would give "
                "its bias alone; choose at least 2, or --norm none"
            )

    @property
    def is_own_network(self) -> bool:
        """Whether a factory of the user's makes the network."""
        module, colon, factory = self.network.partition(":")
        return bool(module and colon and factory)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "Recipe":
        """Return the preset `name` with `overrides` in place of its values; an override of None leaves the value.

        Without norms `statistics` becomes `none` unless it is given.

        Raises:
            ConfigError: unknown preset or option, or a value that the recipe refuses.
        """
        _check_choice("--preset", name, PRESETS)
        known = {field.name for field in fields(cls)} - {"preset"}
        unknown = sorted(set(overrides) - known)
        if unknown:
            raise ConfigError(f"unknown option {unknown[0]!r} for a recipe, expected one of {', '.join(sorted(known))}")
        values = {**PRESETS[name], **{key: value for key, value in overrides.items() if value is not None}}
        if values.get("norm") == "none" and overrides.get("statistics") is None:
            values["statistics"] = "none"
        return cls(preset=name, **values)

    def as_dict(self) -> dict[str, Any]:
        """Return every hyperparameter by name, ready for JSON."""
        return asdict(self)


# What a preset leaves out is the default above: `book` is 10 epochs of plain SGD, steps of 256 rows and one of 96.
# `book-letter`: hand-written norms with the book's own variance, its order of batches, its running statistics.
# `best`: chosen on training images held out (docs/results/best).
# `own-data`: steps that no network of ours and no usual size of data set overshoots with; what --data starts from.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "book": MappingProxyType({}),
        "book-letter": MappingProxyType(
            {"norm": "scratch", "variance": "biased", "statistics": "running", "tail": "last"},
        ),
        "best": MappingProxyType(
            {"optimizer": "muon", "learning_rate": 0.1, "schedule": "linear", "augment": "mirror"},
        ),
        "own-data": MappingProxyType(
            {"optimizer": "adam", "learning_rate": 0.003, "schedule": "linear", "batch_size": 64, "statistics": "best"},
        ),
    }
)


def _check_choice(flag: str, value: object, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{flag} {value}: expected {' or '.join(sorted(allowed))}")


def _check_integer(flag: str, value: object, smallest: int, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise ConfigError(f"{flag} {value}: expected a whole number from {smallest} to {largest}")


def _check_learning_rate(value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= LARGEST_RATE:  # type: ignore[operator]
        raise ConfigError(f"--lr {value}: expected a number above 0 and at most {LARGEST_RATE:.0e}")
