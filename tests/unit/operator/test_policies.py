"""Admission of policies: what is refused is the policy's own fault, and nobody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from placet.core.bundle import store_bundle
from placet.core.bus import InProcessBus
from placet.core.errors import Unavailable
from placet.core.objects import ObjectStore
from placet.operator.policies import PolicyStore
from tests.support.authorization import GATEWAY, bundle_of, members


@pytest.mark.parametrize("content", [b"other bytes", b"", b"x" * (1 << 20)], ids=["other", "empty", "large"])
async def test_29_a_policy_whose_blob_was_overwritten_is_not_refused(tmp_path: Path, content: bytes) -> None:
    objects, bundle, member = ObjectStore(tmp_path.as_uri()), bundle_of(), members(1)[0]
    address = await store_bundle(objects, bundle)
    nothing = cast(Any, None)
    policies = PolicyStore(
        bus=InProcessBus(),
        objects=objects,
        engine=nothing,
        components=nothing,
        operator=member.address,
        bus_signer=member.bus,
        publishers=frozenset({GATEWAY.public_key}),
    )
    policies._announced[bundle.id] = address
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    for path in written:  # by another operator with access to the store, say
        path.write_bytes(content)
    with pytest.raises(Unavailable):
        await policies.get(bundle.id)
