"""The queue of proofs: what becomes of one when the prover, the process or the database fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from placet.core.db import connect, migrate
from placet.core.errors import InvalidInput, NotFound, RateLimited, Unavailable, VerificationFailed
from placet.core.models import File, Kind, Manifest, personal_digest
from placet.core.objects import ObjectStore, sha256
from placet.core.types import Hash32
from placet.inference.hub.store import VersionRow
from placet.inference.proofs.network import network_of
from placet.inference.proofs.prover import Prover
from placet.inference.proofs.service import Proofs, Rules
from placet.inference.proofs.store import ProofRow, ProofStore
from placet.inference.proofs.system import Groth16System
from placet.verify.zk.statement import decode_proof, setup_text
from tests.support.databases import database, postgres  # noqa: F401
from tests.support.hub import Publisher
from tests.support.waiting import until
from tests.support.zk import network_model

MODEL = network_model((4, 3))
NETWORK = network_of(MODEL)
ROW = np.array([1.0, -2.0, 3.0, 0.5], dtype=np.float32)


class Broken:
    """A proof system that fails as often as it is told to."""

    name = "groth16-bn254"

    def __init__(self, failures: int, error: Exception, outputs: list[int] | None = None) -> None:
        self.failures = failures
        self.error = error
        self.outputs = outputs
        self.asked = 0

    async def setup(self, model: Path, pk: Path, vk: Path) -> bytes:
        pk.write_bytes(b"pk")
        vk.write_bytes(b"vk")
        return NETWORK.digest()

    async def prove(self, model: Path, pk: Path, vk: Path, inputs: Sequence[int]) -> tuple[bytes, list[int]]:
        self.asked += 1
        if self.asked <= self.failures:
            raise self.error
        outputs, _ = NETWORK.run(np.array(inputs, dtype=np.int64))
        return bytes(128), self.outputs or [int(value) for value in outputs]

    async def close(self) -> None: ...


class Hub:
    def __init__(self, row: VersionRow) -> None:
        self.row = row

    async def by_digest(self, digest: Hash32) -> VersionRow:
        assert digest == self.row.sha256
        return self.row


class Place:
    def __init__(self, folder: Path, engine: Any, now: float = 1_000_000.0) -> None:
        self.folder, self.now = folder, now
        self.objects = ObjectStore("memory:///")
        self.store = ProofStore(engine)
        content = MODEL.SerializeToString()
        self.file = File("model.onnx", sha256(content), len(content))
        manifest = Manifest("alice", "m", 1, Kind.TENSORS, (self.file,), zk_network_sha256=Hash32(NETWORK.digest()))
        self.row = VersionRow(manifest, Hash32(b"\x05" * 32), b"", b"", 0, None)
        self.content = content
        (folder / "model.onnx").write_bytes(content)

    def proofs(self, system: Any, **rules: Any) -> Proofs:
        return Proofs(
            system=system,
            store=self.store,
            hub=cast(Any, Hub(self.row)),
            objects=self.objects,
            folder=self.folder / "proving",
            rules=Rules(**({"development": True} | rules)),
            clock=lambda: self.now,
        )

    async def asked(self, proofs: Proofs, number: int = 1, tenant: str = "t") -> Hash32:
        from placet.core.tensors import Tensor

        await self.objects.put(self.content)
        proven = await proofs.answer(self.row, self.folder, (Tensor("x", "FP32", (1, 4), ROW.tobytes()),))
        await proofs.queue(Hash32(number.to_bytes(32, "big")), tenant, proven.statement)
        return Hash32(number.to_bytes(32, "big"))


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    engine = connect(f"sqlite+aiosqlite:///{tmp_path / 'inference.db'}")
    await migrate(engine, "placet.inference.migrations")
    yield Place(tmp_path, engine)
    await engine.dispose()


async def ended(proofs: Proofs, proof_id: Hash32, within_s: float = 20.0) -> tuple[str, bytes, str]:
    running = asyncio.create_task(proofs.run())
    try:
        found = ("", b"", "")

        async def over() -> bool:
            nonlocal found
            found = await proofs.document(proof_id, "t")
            return found[0] in ("done", "failed")

        async with asyncio.timeout(within_s):
            while not await over():
                await asyncio.sleep(0.05)
        return found
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_fails_for_a_moment_is_tried_again(place: Place) -> None:
    system = Broken(2, Unavailable("the prover ended"))
    proofs = place.proofs(system)
    state, document, _ = await ended(proofs, await place.asked(proofs))
    assert (state, system.asked) == ("done", 3)
    assert decode_proof(document).setup.by == "operator-dev"


async def test_what_fails_again_and_again_has_failed_and_says_why(place: Place) -> None:
    proofs = place.proofs(Broken(10, Unavailable("more memory is needed")))
    assert await ended(proofs, await place.asked(proofs)) == ("failed", b"", "more memory is needed")


async def test_what_cannot_be_proven_is_not_tried_again(place: Place) -> None:
    system = Broken(10, VerificationFailed("keys of another model"))
    proofs = place.proofs(system)
    assert (await ended(proofs, await place.asked(proofs)))[0] == "failed"
    assert system.asked == 1
    other = Broken(0, Unavailable(""), outputs=[1, 2, 3])
    proofs = place.proofs(other)
    assert "other outputs" in (await ended(proofs, await place.asked(proofs, 2)))[2]


async def test_a_replica_that_died_over_a_proof_leaves_it_to_the_next(place: Place) -> None:
    proofs = place.proofs(Broken(0, Unavailable("")), lease_s=60)
    proof_id = await place.asked(proofs)
    claimed = await place.store.claim(int(place.now), int(place.now) + 60)
    assert claimed is not None
    assert await place.store.claim(int(place.now), int(place.now) + 60) is None
    place.now += 61
    assert (await ended(proofs, proof_id))[0] == "done"
    await place.store.end(claimed, document_sha256=None, error="late")  # the dead one wakes up: it changes nothing
    assert (await proofs.document(proof_id, "t"))[0] == "done"


async def test_the_queue_is_bounded_and_shared_by_tenants(place: Place) -> None:
    proofs = place.proofs(Broken(0, Unavailable("")), most_waiting=3, most_of_tenant=2)
    await place.asked(proofs, 1)
    await place.asked(proofs, 2)
    with pytest.raises(RateLimited, match="of yours"):
        await place.asked(proofs, 3)
    await place.asked(proofs, 3, "u")
    with pytest.raises(RateLimited, match="too many"):
        await place.asked(proofs, 4, "v")
    with pytest.raises(NotFound):
        await proofs.document(Hash32((3).to_bytes(32, "big")), "t")


async def test_two_replicas_do_not_work_on_one_proof(place: Place) -> None:
    proofs = place.proofs(Broken(0, Unavailable("")))
    for number in range(1, 6):
        await place.asked(proofs, number)
    found: list[ProofRow | None] = await asyncio.gather(*(place.store.claim(int(place.now), int(place.now) + 60) for _ in range(5)))
    ids = [row.id for row in found if row is not None]
    assert len(ids) == len(set(ids))
    assert ids


async def test_a_registered_setup_is_taken_before_a_development_one(place: Place) -> None:
    proofs, alice = place.proofs(Broken(0, Unavailable(""))), Publisher("alice")
    await place.asked(proofs)
    pk, vk = Prover(NETWORK).setup()
    pk_sha256, vk_sha256 = await place.objects.put(pk), await place.objects.put(vk)
    parts: dict[str, Any] = {"model_sha256": place.row.sha256, "network_sha256": Hash32(NETWORK.digest()), "pk_sha256": pk_sha256, "at": 1}
    text = setup_text(vk_sha256=vk_sha256, **parts)

    async def register(text: bytes, signature: bytes, by: str = "publisher", **changes: Any) -> Any:
        return await proofs.register(by, text, signature, alice.address, replace(place.row.manifest, **changes), place.row.sha256)

    made = await register(text, alice.sign(text))
    assert made.setup.address == alice.address
    assert (await place.store.setup_of(place.row.sha256)) == made
    mallory = Publisher("mallory")
    with pytest.raises(VerificationFailed, match="publisher's"):
        await register(text, mallory.sign(text))
    assert (await register(text, mallory.sign(text), by="client")).setup.address == mallory.address
    for wrong, kind in (
        (setup_text(vk_sha256=pk_sha256, **parts), VerificationFailed),
        (setup_text(vk_sha256=vk_sha256, **(parts | {"model_sha256": Hash32(bytes(32))})), InvalidInput),
        (setup_text(vk_sha256=Hash32(b"\x01" * 32), **parts), NotFound),
        (setup_text(vk_sha256=vk_sha256, **(parts | {"pk_sha256": Hash32(b"\x01" * 32)})), NotFound),
        (text + b" ", InvalidInput),
    ):
        with pytest.raises((kind, InvalidInput)):
            await register(wrong, alice.sign(wrong))
    with pytest.raises(InvalidInput, match="not published for zkml"):
        await register(text, alice.sign(text), zk_network_sha256=None)
    assert personal_digest(text) != personal_digest(text + b" ")


async def test_the_prover_is_limited_and_killed(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(network_model((200, 100, 10)).SerializeToString())
    paths = tmp_path / "model.onnx", tmp_path / "pk", tmp_path / "vk"
    slow = Groth16System(tmp_path / "scratch", memory_bytes=4 << 30, timeout_s=0.5)
    with pytest.raises(Unavailable, match="within"):
        await slow.setup(*paths)
    await until(lambda: slow._child is None, "it was killed")
    small = Groth16System(tmp_path / "scratch", memory_bytes=150 << 20, timeout_s=60)
    with pytest.raises(Unavailable):
        await small.setup(*paths)
    await small.close()
    healthy = Groth16System(tmp_path / "scratch", memory_bytes=4 << 30, timeout_s=60)
    try:
        (tmp_path / "model.onnx").write_bytes(MODEL.SerializeToString())
        assert await healthy.setup(*paths) == NETWORK.digest()
        inputs = [int(value) for value in NETWORK.quantise(ROW)]
        proof, outputs = await healthy.prove(*paths, inputs)
        assert len(proof) == 128
        assert outputs == [int(value) for value in NETWORK.run(NETWORK.quantise(ROW))[0]]
        with pytest.raises(VerificationFailed):
            await healthy.prove(paths[0], paths[2], paths[1], inputs)  # keys the wrong way round
        assert (await healthy.prove(*paths, inputs))[1] == outputs, "it goes on after a refusal"
    finally:
        await healthy.close()
