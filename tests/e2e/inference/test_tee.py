"""Mode tee from end to end, with the development attester: evidence for the key that signs, and prompts that the gateway does not read."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from openai import AsyncOpenAI

from placet.core import receipts, sealing
from placet.core.errors import InvalidInput, TeeRejected, TeeUnavailable, Unavailable
from placet.core.receipts import Mode, key_id_of
from placet.core.types import Hash32, hex0x
from placet.sdk.hub import Publisher, PublisherKey
from placet.sdk.local.network import LocalNetwork, LocalOptions
from placet.verify import Expected, ReceiptKey, verify_receipt
from placet.verify.tee import Attested, Binding, EvidenceKind, KindPolicy, TeePolicy, decode_evidence, verify_evidence
from tests.e2e.inference.conftest import Town
from tests.e2e.inference.test_openai import MESSAGES, chat, plain

__all__ = ["chat"]

SEED = b"\x44" * 32
ROOT = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
DEVELOPMENT = TeePolicy({EvidenceKind.SOFTWARE_DEV: KindPolicy(roots=frozenset({ROOT}))}, production=False)


def options(tmp_path: Path, **changes: Any) -> LocalOptions:
    (tmp_path / "attester.key").write_text(SEED.hex())
    wants = {"tee": "software-dev", "tee_software_key_file": str(tmp_path / "attester.key"), "receipt_key_file": None}
    return LocalOptions(tmp_path / "net", operators=1, inference=2, inference_overrides=wants | changes)


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with LocalNetwork(options(tmp_path)) as network, network.client() as client:
        alice = Publisher(client, "placet:31337", "alice", PublisherKey(b"\x11" * 32))
        await alice.claim()
        yield Town(network, client, alice, tmp_path)


def judged(evidence: Any, receipt_key: str, nonce: Hash32, model: Hash32, hpke_key: str, policy: TeePolicy = DEVELOPMENT) -> Attested:
    binding = Binding(bytes.fromhex(receipt_key[2:]), nonce, model, bytes.fromhex(hpke_key[2:]))
    return verify_evidence(decode_evidence(orjson.dumps(evidence)), binding=binding, policy=policy, at=int(time.time()))


async def attestation(town: Town, nonce: Hash32) -> dict[str, Any]:
    found: dict[str, Any] = (await town.client.request("GET", f"/api/v1/attestation?nonce={hex0x(nonce)}&model=alice/chat"))[1]
    return found


async def test_an_answer_names_the_evidence_of_the_key_that_signed_it(town: Town, chat: AsyncOpenAI) -> None:
    nonce = Hash32(secrets.token_bytes(32))
    said = await attestation(town, nonce)
    model = Hash32(bytes.fromhex(said["modelSha256"][2:]))
    attested = judged(said["evidence"], said["receiptKey"], nonce, model, said["hpkeKey"])
    assert attested.level == "none (development)"
    with pytest.raises(TeeRejected, match="production"):
        judged(said["evidence"], said["receiptKey"], nonce, model, said["hpkeKey"], TeePolicy(DEVELOPMENT.kinds))
    with pytest.raises(TeeRejected):
        judged(said["evidence"], said["receiptKey"], Hash32(bytes(32)), model, said["hpkeKey"])

    asked: dict[str, Any] = {"model": "alice/chat", "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
    wants = {"placet": {"mode": "tee", "nonce": hex0x(nonce), "key": said["keyId"]}}
    answer = await chat.chat.completions.create(**asked, extra_body=wants)
    assert answer.model_extra is not None
    receipt = receipts.from_document(answer.model_extra["placet"]["receipt"])
    assert receipt.mode is Mode.TEE
    assert receipt.evidence_sha256 == attested.evidence_sha256
    assert answer.model_extra["placet"]["evidence"] == said["evidence"]
    key = ReceiptKey(bytes.fromhex(said["receiptKey"][2:]))
    expected = Expected(
        request={**asked, **wants}, model_name="alice/chat", response=plain(answer), model_sha256=model, mode=Mode.TEE, client_nonce=nonce
    )
    assert verify_receipt(receipt, keys={key_id_of(key.public_key): key}, expected=expected).ok

    stream = await chat.chat.completions.create(**asked, extra_body=wants, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].model_extra is not None
    assert receipts.from_document(chunks[-1].model_extra["placet"]["receipt"]).evidence_sha256 == attested.evidence_sha256

    with pytest.raises(openai.BadRequestError, match="nonce"):
        await chat.chat.completions.create(**asked, extra_body={"placet": {"mode": "tee"}})


async def test_the_gateway_does_not_read_a_sealed_prompt(town: Town, chat: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    nonce = Hash32(secrets.token_bytes(32))
    said = await attestation(town, nonce)
    model = Hash32(bytes.fromhex(said["modelSha256"][2:]))
    judged(said["evidence"], said["receiptKey"], nonce, model, said["hpkeKey"])  # a caller seals to nothing else
    session: Any = {"surface": "chat.completions", "model_sha256": model, "nonce": nonce}
    body: dict[str, Any] = {
        "model": "alice/chat",
        "messages": [{"role": "user", "content": "my secret"}],
        "max_tokens": 6,
        "temperature": 0,
    }
    sealed, answer_key = sealing.seal_request(body, bytes.fromhex(said["hpkeKey"][2:]), **session)
    wants = {"mode": "tee", "nonce": hex0x(nonce), "key": said["keyId"]}
    given = {"model": "alice/chat", "surface": "chat.completions", "sealed": base64.b64encode(sealed).decode(), "placet": wants}

    seen: list[bytes] = []
    replica = next(item for item in town.network.inside("gateway")._replicas.living() if hex0x(item.said.key_id) == said["keyId"])
    genuine = replica.inference.Run

    def passed_on(request: Any) -> Any:
        seen.append(request.SerializeToString())
        return genuine(request)

    monkeypatch.setattr(replica.inference, "Run", passed_on)
    answer = (await town.client.request("POST", "/api/v1/sealed", given))[1]
    seen.append(orjson.dumps(given) + orjson.dumps(answer))
    assert len(seen) == 2
    assert not any(b"secret" in item for item in seen), "neither what comes in, nor what is passed on, nor what goes out"
    opened = sealing.open_answer(base64.b64decode(answer["sealed"]), answer_key, **session)
    direct = await chat.chat.completions.create(**body)
    assert opened["choices"][0]["message"]["content"] == direct.choices[0].message.content

    receipt = receipts.from_document(answer["placet"]["receipt"])
    assert receipt.request_sha256 == receipts.request_digest("chat.completions", "alice/chat", {"sealed": given["sealed"]})
    assert receipt.response_sha256 == receipts.response_digest({"sealed": answer["sealed"]})
    assert (receipt.mode, receipt.client_nonce) == (Mode.TEE, nonce)

    changes: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"surface": "completions"}, InvalidInput),
        ({"sealed": base64.b64encode(sealed[:-1] + bytes([sealed[-1] ^ 1])).decode()}, InvalidInput),
        ({"sealed": "!"}, InvalidInput),
        ({"placet": {**wants, "nonce": "0x" + "00" * 32}}, InvalidInput),
        ({"placet": {**wants, "key": "0x" + "00" * 32}}, Unavailable),
        ({"placet": {"mode": "vanilla"}}, InvalidInput),
        ({"more": 1}, InvalidInput),
    ]
    for change, kind in changes:
        with pytest.raises(kind):
            await town.client.request("POST", "/api/v1/sealed", given | change)


async def test_without_a_tee_there_is_none(tmp_path: Path) -> None:
    plain_options = LocalOptions(tmp_path / "plain", operators=1, inference=1)
    async with LocalNetwork(plain_options) as network, network.client() as client:
        alice = Publisher(client, "placet:31337", "alice", PublisherKey(b"\x11" * 32))
        await alice.claim()
        town = Town(network, client, alice, tmp_path)
        await town.linear()
        with pytest.raises(TeeUnavailable):
            await client.request("GET", f"/api/v1/attestation?nonce=0x{'01' * 32}&model=alice/linear")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"environment": "production"}, "refused in production"),
        ({"tee_software_key_file": None}, "needs one"),
        ({"receipt_key_file": "x"}, "made inside"),
    ],
)
async def test_a_development_substitute_is_refused_where_it_matters(tmp_path: Path, changes: Any, says: str) -> None:
    network = LocalNetwork(options(tmp_path, **changes))
    try:
        with pytest.raises(InvalidInput, match=says):
            await network.start()
    finally:
        await network.stop()
