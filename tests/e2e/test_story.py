"""The demo's story, over the in-process bus, and over real Kafka and PostgreSQL with every service its own process."""

from __future__ import annotations

from pathlib import Path

import pytest

from placet.sdk.demo import tell
from placet.sdk.local.network import LocalOptions


@pytest.mark.parametrize(
    "separate", [pytest.param(False, id="in-process"), pytest.param(True, id="kafka-and-postgres", marks=pytest.mark.kafka)]
)
async def test_the_story_is_as_told(tmp_path: Path, separate: bool) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    said: list[str] = []
    await tell(LocalOptions(tmp_path / "net", separate=separate, postgres=separate, compiled_cache=cache), said.append)
    text = "\n".join(said)
    for name in (
        "IntentDenied",
        "SequenceMismatch",
        "IntentMismatch",
        "IntentExpired",
        "AttestationExpired",
        "WrongChain",
        "PolicyReplaced",
    ):
        assert f"reverts {name}" in text
    assert "as told" in said[-1]
