"""A registered model; made once, copied for each test."""

import shutil
from pathlib import Path

import pytest

from mev.registry.registry import Registry
from tests.services.models import register
from tests.unit.registry.samples import KEY, TRUST, Made, trained


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Made:
    registry, model = Registry(tmp_path_factory.mktemp("models"), TRUST), trained()
    return Made(registry, register(registry, model, KEY, compiled=True).manifest, model)


@pytest.fixture
def made(original: Made, tmp_path: Path) -> Made:
    """The same model in a folder that a test may spoil."""
    folder = tmp_path / "models"
    shutil.copytree(original.folder, folder)
    return Made(Registry(folder, TRUST), original.manifest, original.trained)
