"""Second reading: `placet policy publish` against one operator of four."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from placet.core.types import hex0x
from placet.sdk.policybuild.publish import _admissions
from tests.support.authorization import CHAIN_ID, World


class _Client:
    def __init__(self, world: World) -> None:
        said = [True, True, True, False]
        self._admissions = [
            {"operator": hex0x(member.address), "stake": "100", "admitted": word, "reason": "" if word else "no"}
            for member, word in zip(world.members, said, strict=True)
        ]

    async def policy(self, policy_id: str) -> dict[str, Any]:
        return {"admissions": {str(CHAIN_ID): self._admissions}}


async def test_29_one_operators_refusal_fails_no_publication() -> None:
    """Three of four admitted it, and gateways take tasks for it; the command ends as `policy_not_admitted`, for every policy there is."""
    world = World()
    said = await _admissions(cast(Any, _Client(world)), cast(Any, SimpleNamespace(id=world.policy_id)), CHAIN_ID, 1.0)
    assert sum(bool(item["admitted"]) for item in said) == 3
