"""The model that comes with foldserve, so that `foldserve serve --demo` answers anywhere: version 1 of lenet-bn."""

from pathlib import Path

_VERSION = Path(__file__).parent / "models" / "lenet-bn" / "1"


def bundled_models() -> Path | None:
    """Return the folder of models that holds it; None where it was left out, as in the service's image.

    In a checkout the version is a link to the folder `models`, which is then served: a link out of a models folder is
    refused. What was trained there is served too.
    """
    return _VERSION.resolve().parents[1] if _VERSION.is_dir() else None


def is_bundled(version: Path) -> bool:
    """Return whether a version folder is the one that comes along, by whatever way it is named."""
    return _VERSION.is_dir() and _VERSION.resolve() == version.resolve()
