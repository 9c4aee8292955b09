"""A gateway to ask."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.gateway import Stage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path)
    await made.open()
    yield made
    await made.close()
