"""Mode zkml from end to end: a model published for it, an answer at once, its proof, and everybody who checks it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import onnx
import orjson
import pytest
from click.testing import CliRunner
from web3 import AsyncWeb3
from web3.providers import AsyncHTTPProvider

from placet.core import receipts
from placet.core.errors import InvalidInput, NotFound
from placet.core.models import Manifest, encode_manifest
from placet.core.types import Hash32, hex0x
from placet.inference.proofs.prover import Prover, read_network
from placet.sdk.cli.verify import verify
from placet.sdk.client import Client
from placet.sdk.hub import Publisher, PublisherKey
from placet.sdk.local.network import LocalNetwork, LocalOptions
from placet.verify.zk.field import ORDER
from placet.verify.zk.groth16 import Proof, VerifyingKey
from placet.verify.zk.statement import Accepted, ProofDocument, decode_proof, verify_proof
from tests.e2e.inference.conftest import Town
from tests.support import onnx_files
from tests.support.zk import network_model, saved

ROW = [0.5, -1.25, 2.0, -0.125]


def options(tmp_path: Path, *, development: bool) -> LocalOptions:
    wants = {"proofs": True, "proof_development_setup": development}
    return LocalOptions(tmp_path / "net", operators=1, inference=1, inference_overrides=wants)


@pytest.fixture
async def proving(tmp_path: Path) -> AsyncIterator[Town]:
    async with LocalNetwork(options(tmp_path, development=False)) as network, network.client() as client:
        alice = Publisher(client, "placet:31337", "alice", PublisherKey(b"\x11" * 32))
        await alice.claim()
        yield Town(network, client, alice, tmp_path)


async def infer(town: Town, model: str, row: list[float], **wants: Any) -> tuple[dict[str, Any], Any]:
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, len(row)], "data": row}],
        "parameters": {"placet": json.dumps({"mode": "zkml", **wants})},
    }
    headers = {"authorization": f"Bearer {town.network.api_key}"}
    url = f"{town.network.gateway_url}/v2/models/alice/{model}/infer"
    async with aiohttp.ClientSession(headers=headers) as session, session.post(url, json=body) as said:
        answer = await said.json()
        if said.status != 200:
            raise Refused(answer["error"])
        proof = said.headers["placet-proof"]
    receipt = receipts.from_document(orjson.loads(answer["parameters"]["placet_receipt"]))
    assert proof == f"/api/v1/proofs/{hex0x(receipt.id)}"
    return answer, receipt


class Refused(Exception):
    """What the protocol answers in place of a result."""


async def proof_of(town: Town, receipt_id: bytes, within_s: float = 60.0) -> ProofDocument:
    async with asyncio.timeout(within_s):
        while True:
            status, document = await town.client.request("GET", f"/api/v1/proofs/{hex0x(receipt_id)}")
            if status == 200:
                return decode_proof(orjson.dumps(document))
            assert status == 202
            assert document["state"] in ("queued", "running")
            await asyncio.sleep(0.2)


async def test_an_answer_is_proven_and_the_proof_checked_by_everybody(proving: Town, tmp_path: Path) -> None:
    town, path = proving, saved(network_model((4, 8, 1), sigmoid=True), tmp_path / "score.onnx")
    manifest = await town.alice.publish("score", {"model.onnx": path}, zkml=True)
    await town.alice.move("score", "prod", manifest.version)

    with pytest.raises(Refused, match="nobody has made keys"):
        await infer(town, "score", ROW)

    network = read_network(path)
    pk, vk = Prover(network).setup()
    (tmp_path / "pk").write_bytes(pk)
    (tmp_path / "vk").write_bytes(vk)
    registered = await town.alice.register_setup(manifest, tmp_path / "pk", tmp_path / "vk")

    answer, receipt = await infer(town, "score", ROW)
    score = answer["outputs"][0]["data"][0]
    assert receipt.mode is receipts.Mode.ZKML
    assert receipt.evidence_sha256 is not None
    document = await proof_of(town, receipt.id)
    assert document.statement.values() == pytest.approx([score])
    accepted = Accepted({document.setup.address: "alice"} if document.setup.address else {})
    report = verify_proof(
        document, accepted=accepted, receipt=receipt, model_sha256=receipt.model.sha256, network_sha256=Hash32(network.digest())
    )
    assert report.ok, report.checks
    assert registered["address"] == hex0x(document.setup.address or b"")

    # Whatever is changed, a check fails.
    for changed, number in ((_other_output(document), 3), (_other_key(document), 1), (_other_signer(document), 4)):
        failed = {check.number for check in verify_proof(changed, accepted=accepted, receipt=receipt).checks if not check.ok}
        assert number in failed
    assert not verify_proof(document, accepted=Accepted({})).ok
    assert not verify_proof(document, accepted=accepted, network_sha256=Hash32(bytes(32))).ok

    # The command line says the same, and a contract on the chain.
    (tmp_path / "proof.json").write_bytes(document.encode())
    (tmp_path / "receipt.json").write_text(answer["parameters"]["placet_receipt"])
    arguments = [str(tmp_path / "proof.json"), "--setup", registered["address"], "--receipt", str(tmp_path / "receipt.json")]
    said = await asyncio.to_thread(CliRunner().invoke, verify, [*arguments, "--model-file", str(path)])
    assert said.exit_code == 0, said.output
    assert "verified" in said.output
    assert (await asyncio.to_thread(CliRunner().invoke, verify, arguments[:1])).exit_code == 1
    assert await _on_chain(town, document) == [True, False]

    # Somebody else's proof is not shown.
    async with Client(town.network.gateway_url, await town.network.new_api_key("other")) as other:
        with pytest.raises(NotFound):
            await other.request("GET", f"/api/v1/proofs/{hex0x(receipt.id)}")


def _other_output(document: ProofDocument) -> ProofDocument:
    statement = replace(document.statement, outputs=(document.statement.outputs[0] + 1,))
    return replace(document, statement=statement)


def _other_key(document: ProofDocument) -> ProofDocument:
    return replace(document, vk=document.vk[:-32] + document.vk[-64:-32])


def _other_signer(document: ProofDocument) -> ProofDocument:
    return replace(
        document, setup=replace(document.setup, signature=document.setup.signature[:-1] + bytes([55 - document.setup.signature[-1]]))
    )


async def _on_chain(town: Town, document: ProofDocument) -> list[bool]:
    """What Groth16Verifier says of the proof, and of one for another output."""
    artifact = json.loads((Path(__file__).parents[3] / "contracts" / "artifacts" / "Groth16Verifier.json").read_text())
    web3 = AsyncWeb3(AsyncHTTPProvider(town.network.anvil.url))
    sender = (await web3.eth.accounts)[0]
    made = await web3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"]).constructor().transact({"from": sender})
    where = (await web3.eth.wait_for_transaction_receipt(made))["contractAddress"]
    contract = web3.eth.contract(address=where, abi=artifact["abi"])
    key, proof, numbers = (
        VerifyingKey.from_bytes(document.vk).words(),
        Proof.from_bytes(document.proof).words(),
        document.statement.numbers(),
    )
    wrong = [*numbers[:-1], (numbers[-1] + 1) % ORDER]
    found = [await contract.functions.verify(key, given, proof).call() for given in (numbers, wrong)]
    await web3.provider.disconnect()
    return found


async def test_what_cannot_be_proven_is_refused_by_name(proving: Town, tmp_path: Path) -> None:
    town = proving
    with pytest.raises(InvalidInput, match="zkml: cannot be proven"):
        await town.alice.publish("conv", {"model.onnx": town.file("conv.onnx", onnx_files.dynamically_quantised())}, zkml=True)
    await town.publish("linear", onnx_files.linear())
    with pytest.raises(Refused, match="mode_unavailable"):
        await infer(town, "linear", ROW)


async def test_development_keys_are_made_when_asked_for_and_say_so(tmp_path: Path) -> None:
    async with LocalNetwork(options(tmp_path, development=True)) as network, network.client() as client:
        alice = Publisher(client, "placet:31337", "alice", PublisherKey(b"\x11" * 32))
        await alice.claim()
        town = Town(network, client, alice, tmp_path)
        path = saved(network_model((4, 3)), tmp_path / "small.onnx")
        manifest: Manifest = await alice.publish("small", {"model.onnx": path}, zkml=True)
        assert b"zkNetworkSha256" in encode_manifest(manifest)
        await alice.move("small", "prod", manifest.version)
        answer, receipt = await infer(town, "small", ROW)
        document = await proof_of(town, receipt.id)
        assert document.setup.by == "operator-dev"
        assert not verify_proof(document, accepted=Accepted({})).ok
        assert verify_proof(document, accepted=Accepted({}, development=True), receipt=receipt).ok
        exact = _reference(path, ROW)
        assert np.abs(np.array(answer["outputs"][0]["data"]) - exact).max() < 6e-3
        for row, says in (([17.0, 0, 0, 0], "within"), ([0.0, 0, 0], "shape")):
            with pytest.raises(Refused, match=says):
                await infer(town, "small", row)
    wants = {"proofs": True, "proof_development_setup": True, "environment": "production"}
    live = LocalNetwork(LocalOptions(tmp_path / "live", operators=1, inference=1, inference_overrides=wants))
    try:
        with pytest.raises(InvalidInput, match="refused in production"):
            await live.start()
    finally:
        await live.stop()


def _reference(path: Path, row: list[float]) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx.load(str(path)).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.array([row], dtype=np.float32)})[0][0]
