"""Building a Rust component. Not collected by `make test`: it needs rustup and Debian 12. `make test-rust` fails without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.packs.conftest import Server, server
from tests.support.new_pack import new_pack_is_built_judges_and_replays

__all__ = ["server"]


def test_a_new_pack_in_rust_is_built_judges_live_data_and_replays_it(
    tmp_path: Path, server: Server, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp().parent / "placet-cache"))
    # The compiler lies in the user's cache, as for the Rego engine.
    monkeypatch.setenv("PLACET_ENGINE_CACHE", str(Path.home() / ".cache" / "placet-engine"))
    new_pack_is_built_judges_and_replays(tmp_path, server, "rust")
