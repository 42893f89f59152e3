"""Version folders that the tests of the service share; each test gets its own folder to change."""

from pathlib import Path

import pytest

from tests.support import artifacts


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """An empty models folder."""
    root = tmp_path / "models"
    root.mkdir()
    return root


@pytest.fixture
def fashion(models: Path) -> Path:
    """The models folder with one labelled image classifier, `fashion`, version 1."""
    artifacts.publish_classifier(models)
    return models


@pytest.fixture
def fashion_and_echo(fashion: Path) -> Path:
    """The models folder with two models: `fashion` and `echo`."""
    artifacts.publish_echo(fashion)
    return fashion
