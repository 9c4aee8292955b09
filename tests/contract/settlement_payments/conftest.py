"""A chain a file; contracts, keys and database a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from placet.sdk.devservices.anvil import Anvil
from tests.contract.settlement_payments.world import CHAIN_ID, World


@pytest.fixture(scope="module")
def anvil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anvil]:
    with Anvil(tmp_path_factory.mktemp("anvil"), chain_id=CHAIN_ID) as node:
        yield node


@pytest.fixture
async def world(anvil: Anvil, tmp_path: Path) -> AsyncIterator[World]:
    made = await World.make(anvil, tmp_path)
    yield made
    await made.kill()
    await made.rpc.call("evm_setAutomine", [True])
    await made.rpc.close()
