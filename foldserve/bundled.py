"""The model that comes with foldserve, so that `foldserve serve --demo` answers anywhere: version 1 of lenet-bn."""

from pathlib import Path


def bundled_models() -> Path | None:
    """Return the folder of models that holds it; None where it was left out, as in the service's image."""
    models = Path(__file__).parent / "models"
    return models if (models / "lenet-bn/1").is_dir() else None


def is_bundled(version: Path) -> bool:
    """Return whether a version folder is the one that comes along, by whatever way it is named."""
    models = bundled_models()
    return models is not None and (models / "lenet-bn/1").resolve() == version.resolve()
