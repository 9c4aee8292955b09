"""Four equal operators and a two-thirds quorum: what one wrong operator changes (nothing), and what two can do (nothing but delay)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from placet.core import topics, wire
from placet.core.digests import leaf_struct_hash
from placet.core.envelope import Kind, seal
from placet.core.errors import DeadlineExceeded, NoQuorum
from placet.core.merkle import leaf_hash, root_and_proofs
from placet.core.messages import GroupResponse, Response
from placet.core.types import Certificate, Hash32
from placet.operator.main import Operator
from tests.e2e.conftest import MakeVault

Hook = Callable[[Operator], None]


def silent(operator: Operator) -> None:
    """Says nothing at all."""

    async def run() -> None:
        await asyncio.Event().wait()

    operator.service.run = run  # type: ignore[method-assign]


def garbage(operator: Operator) -> None:
    """Signs with bytes that are a valid point but no signature of its own."""
    signer = operator._signer
    genuine = signer.sign_certificate

    async def sign(certificate: Certificate, chain_id: int, validator: Any) -> bytes:
        return await genuine(replace(certificate, epoch=certificate.epoch + 1), chain_id, validator)

    signer.sign_certificate = sign  # type: ignore[method-assign]


def other_root(operator: Operator) -> None:
    """Decides the opposite, and signs it properly."""
    evaluator = operator._evaluator
    genuine = evaluator.decide

    async def decide(*arguments: Any) -> Any:
        import placet.core.decision as decision

        loaded, context, tasks, observations = arguments
        out = []
        for (item, _record), task in zip(await genuine(*arguments), tasks, strict=True):
            content = decision.decision_content(not item.leaf.allow, ["because I say so"], None)
            out.append(
                decision.decide(
                    context,
                    task.index,
                    loaded.policy,
                    sequence=task.sequence,
                    allow=not item.leaf.allow,
                    decision=content,
                    outputs=task.outputs,
                    observations=observations,
                )
            )
        return out

    evaluator.decide = decide  # type: ignore[method-assign,assignment]


def equivocating(operator: Operator) -> None:
    """Signs the honest leaf, and after it a second, different leaf for the same task, past its own log."""
    service = operator.service
    genuine = service._bus.publish

    async def publish(topic: str, key: bytes, value: bytes | None, headers: Any = ()) -> Any:
        sent = await genuine(topic, key, value, headers)
        if topic == topics.RESPONSES and value is not None:
            await genuine(topic, key, await _second_answer(operator, value), headers)
        return sent

    service._bus.publish = publish  # type: ignore[method-assign]


async def _second_answer(operator: Operator, envelope: bytes) -> bytes:
    from placet.core.envelope import open_envelope

    service = operator.service
    message = open_envelope(envelope, lambda kind, sender: service._answers._bus_signer.public_key)
    response = wire.decode_response(message.payload, 256)
    group = response.groups[0]
    decided = tuple(replace(item, leaf=replace(item.leaf, sequence=item.leaf.sequence + 5)) for item in group.decided)
    root, _ = root_and_proofs([leaf_hash(leaf_struct_hash(item.leaf)) for item in decided])
    reader = next(iter(service._chains.values()))
    state = await reader.at((await reader.latest_block()).hash)
    certificate = Certificate(root, len(decided), state.epoch, group.decided[0].leaf.expiration - 300)
    signature = await service._answers._bls.sign_certificate(certificate, message.chain_id, reader.deployment.validator)
    payload = wire.encode_response(Response((GroupResponse(decided, signature),), (), "other"))
    return seal(
        service._answers._bus_signer,
        kind=Kind.RESPONSE,
        chain_id=message.chain_id,
        sender=message.sender,
        payload=payload,
        batch_id=message.batch_id,
        proposal_digest=Hash32(message.proposal_digest),
    )


@pytest.mark.parametrize("wrong", [silent, garbage, other_root, equivocating], ids=lambda hook: hook.__name__)
async def test_one_wrong_operator_of_four_changes_nothing(make_vault: MakeVault, wrong: Hook) -> None:
    vault = await make_vault(hooks={"operator-2": wrong})
    before = await vault.shares()
    allowed = await vault.ask(100)
    assert allowed["decision"] == "allow"
    assert allowed["attestation"]["leaf"]["sequence"] == 0
    await vault.execute(allowed)
    assert await vault.shares() == before - 100
    denied = await vault.ask(5000)
    assert denied["decision"] == "deny"
    if wrong is not equivocating:
        signers = int(allowed["attestation"]["signers"], 16)
        assert bin(signers).count("1") == 3


@pytest.mark.parametrize("wrong", [garbage, other_root], ids=lambda hook: hook.__name__)
async def test_two_wrong_operators_of_four_cannot_make_a_certificate(make_vault: MakeVault, wrong: Hook) -> None:
    vault = await make_vault(hooks={"operator-1": wrong, "operator-2": wrong})
    with pytest.raises((NoQuorum, DeadlineExceeded)) as caught:
        await vault.ask(100)
    reasons = caught.value.extra["operators"]
    assert len(reasons) == 4
    assert caught.value.extra["taskId"].startswith("0x")


async def test_18_two_silent_operators_make_a_failure_that_names_them_never_a_denial(make_vault: MakeVault) -> None:
    vault = await make_vault(hooks={"operator-1": silent, "operator-2": silent}, observe_for_ms=500)
    with pytest.raises((NoQuorum, DeadlineExceeded)) as caught:
        await vault.ask(100)
    assert sorted(item["code"] for item in caught.value.extra["operators"]) == ["signed", "signed", "silent", "silent"]
    assert caught.value.retryable
