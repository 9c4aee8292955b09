from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import models


@pytest.fixture(scope="session")
def model(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """A model of tests/support/models.py by name; built once and kept."""
    cache = pytestconfig.cache
    assert cache is not None
    folder = cache.mkdir("placet-models")
    return lambda name: models.built(folder, name, getattr(models, name))
