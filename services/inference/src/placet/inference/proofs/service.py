"""Proven answers: what is said at once and signed in the receipt, and the proof that follows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from placet.core import jsonx
from placet.core.db import DATABASE_ERRORS
from placet.core.ecdsa import recover
from placet.core.errors import InvalidInput, ModeUnavailable, NotFound, PlacetError, VerificationFailed
from placet.core.models import Manifest, personal_digest
from placet.core.objects import ObjectStore
from placet.core.receipts import ModelRef
from placet.core.telemetry import metrics
from placet.core.tensors import Tensor
from placet.core.types import Address, Hash32, hash_from, hex0x
from placet.inference.hub.store import HubStore, VersionRow
from placet.inference.proofs.network import FRACTION_BITS, INPUT_BOUND, Network
from placet.inference.proofs.prover import read_network
from placet.inference.proofs.store import ProofRow, ProofStore, SetupRow
from placet.inference.proofs.system import ProofSystem
from placet.verify.zk.groth16 import MAX_KEY_BYTES, VerifyingKey
from placet.verify.zk.statement import MAX_DOCUMENT_BYTES, OPERATOR_DEV, SETUPS, ProofDocument, Setup, Statement, setup_text, statement_of

log = logging.getLogger(__name__)

MAX_PROVING_KEY_BYTES = 64 << 20
KEEP_S = 30 * 86_400
_ATTEMPTS = 3
_POLL_S = 2.0
_NETWORKS = 16
_ENDED = metrics.counter("placet_inference_proofs_total", "Proofs that ended, by outcome.", ["outcome"])
_SECONDS = metrics.histogram(
    "placet_inference_proof_seconds", "Time to make one proof.", [], buckets=(0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)
)


@dataclass(frozen=True, slots=True)
class Rules:
    """How much is proven here. `development`: make keys for models that have none, labelled so."""

    most_waiting: int = 64
    most_of_tenant: int = 8
    lease_s: int = 300
    development: bool = False


@dataclass(frozen=True, slots=True)
class Proven:
    """An answer that is going to be proven."""

    output: Tensor
    statement: Statement


class Proofs:
    """Proofs of one replica; their queue is shared."""

    def __init__(
        self,
        *,
        system: ProofSystem,
        store: ProofStore,
        hub: HubStore,
        objects: ObjectStore,
        folder: Path,
        rules: Rules,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._system = system
        self._store = store
        self._hub = hub
        self._objects = objects
        self._folder = folder
        self._rules = rules
        self._clock = clock
        self._networks: OrderedDict[Hash32, Network] = OrderedDict()
        self._making: dict[Hash32, asyncio.Lock] = {}
        self._queued = asyncio.Event()

    # --- answers

    async def answer(self, row: VersionRow, folder: Path, tensors: tuple[Tensor, ...]) -> Proven:
        """What the network makes of one row, in the numbers that are going to be proven.

        Raises:
            ModeUnavailable: the model is not published for this mode, or nobody made keys for it.
            InvalidInput: not one row within the bound.
        """
        network = await self._network(row, folder)
        setup = await self._setup(row, folder)
        if len(tensors) != 1 or tensors[0].name != network.input_name or tensors[0].datatype != "FP32":
            raise InvalidInput(f"inputs: one FP32 tensor named {network.input_name!r} wanted", field="inputs")
        shape = tensors[0].shape
        if tuple(shape) not in (network.input_shape, (1, *network.input_shape)):
            raise InvalidInput(f"inputs: shape [1, {', '.join(map(str, network.input_shape))}] wanted: one row a proof", field="inputs")
        inputs = network.quantise(np.frombuffer(tensors[0].data, dtype="<f4"))
        outputs, _ = network.run(inputs)
        manifest = row.manifest
        statement = Statement(
            model=ModelRef(manifest.publisher, manifest.name, manifest.version, row.sha256),
            network_sha256=Hash32(network.digest()),
            vk_sha256=setup.vk_sha256,
            fraction_bits=FRACTION_BITS,
            output_bits=network.output_bits,
            input_bound=INPUT_BOUND,
            input_name=network.input_name,
            output_name=network.output_name,
            inputs=tuple(int(value) for value in inputs),
            outputs=tuple(int(value) for value in outputs),
            setup_by=setup.setup.by,
        )
        data = network.floats(outputs).astype("<f4").tobytes()
        return Proven(Tensor(network.output_name, "FP32", (1, network.outputs), data), statement)

    async def queue(self, proof_id: Hash32, tenant: str, statement: Statement) -> None:
        """Have it proven. Raises RateLimited, Unavailable."""
        row = ProofRow(proof_id, tenant, statement.model.sha256, statement.vk_sha256, statement.encode(), "queued")
        rules = self._rules
        await self._store.add(row, int(self._clock()), most=rules.most_waiting, most_of_tenant=rules.most_of_tenant)
        self._queued.set()

    async def document(self, proof_id: Hash32, tenant: str) -> tuple[str, bytes, str]:
        """(state, the proof's document once it is there, why it failed). Raises NotFound, Unavailable."""
        row = await self._store.get(proof_id, tenant)
        if row.document_sha256 is None:
            return row.state, b"", row.error or ""
        return row.state, await self._objects.get(row.document_sha256, max_bytes=MAX_DOCUMENT_BYTES), ""

    async def _network(self, row: VersionRow, folder: Path) -> Network:
        wanted = row.manifest.zk_network_sha256
        if wanted is None:
            raise ModeUnavailable("mode: the model is not published for zkml (publish it with --zkml)", field="mode")
        found = self._networks.get(row.sha256)
        if found is None:
            found = await asyncio.to_thread(read_network, folder / "model.onnx")
            if found.digest() != wanted:
                raise ModeUnavailable("mode: this release makes another network of the model than its manifest names", field="mode")
            self._networks[row.sha256] = found
            while len(self._networks) > _NETWORKS:
                self._networks.popitem(last=False)
        return found

    # --- keys

    async def _setup(self, row: VersionRow, folder: Path) -> SetupRow:
        found = await self._store.setup_of(row.sha256)
        if found is not None and (found.setup.by != OPERATOR_DEV or self._rules.development):
            return found
        if not self._rules.development:
            raise ModeUnavailable("mode: nobody has made keys for this model's proofs (placet models setup)", field="mode")
        async with self._making.setdefault(row.sha256, asyncio.Lock()):
            found = await self._store.setup_of(row.sha256)
            return found or await self._make(row, folder)

    async def _make(self, row: VersionRow, folder: Path) -> SetupRow:
        """Keys for development: whoever runs this replica could forge with what made them."""
        log.warning("DEVELOPMENT: making keys for proofs of %s/%s", row.manifest.publisher, row.manifest.name)
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        pk, vk = (self._folder / f"{row.sha256.hex()}.{name}.new" for name in ("pk", "vk"))
        network = await self._system.setup(folder / "model.onnx", pk, vk)
        pk_sha256, vk_sha256 = [await self._objects.put(await asyncio.to_thread(path.read_bytes)) for path in (pk, vk)]
        for path in (pk, vk):
            await asyncio.to_thread(path.unlink)
        made = SetupRow(row.sha256, Hash32(network), vk_sha256, pk_sha256, Setup(OPERATOR_DEV))
        await self._store.add_setup(made, int(self._clock()))
        return made

    async def register(self, by: str, text: bytes, signature: bytes, owner: Address | None, manifest: Manifest, sha256: Hash32) -> SetupRow:
        """Take keys that somebody made and uploaded. `owner` is the publisher's address.

        Raises:
            InvalidInput: not of the form, or for another model. VerificationFailed: the signature does not hold, or they are no keys.
            NotFound: they were not uploaded.
        """
        if by not in SETUPS:
            raise InvalidInput(f"by: one of {list(SETUPS)}", field="by")
        value = jsonx.parse(text, field="text", max_bytes=4096, max_depth=2)
        if not isinstance(value, dict) or not isinstance(value.get("at"), int):
            raise InvalidInput("text: a statement of placet zk-setup/v1 wanted", field="text")
        vk, pk = (hash_from(value.get(name, ""), field=name) for name in ("vk", "pk"))
        network = manifest.zk_network_sha256
        if network is None:
            raise InvalidInput("model: it is not published for zkml", field="model")
        if text != setup_text(model_sha256=sha256, network_sha256=network, vk_sha256=vk, pk_sha256=pk, at=value["at"]):
            raise InvalidInput(f"text: not for model {hex0x(sha256)} and its network {hex0x(network)}", field="text")
        address = recover(personal_digest(text), signature)
        if address is None or (by == "publisher" and address != owner):
            raise VerificationFailed(
                "the signature is not the publisher's" if by == "publisher" else "the signature is none", field="signature"
            )
        size = await self._objects.size_of(pk)
        if size is None or size > MAX_PROVING_KEY_BYTES:
            raise NotFound("the proving key was not uploaded, or is too large", field="pk")
        raw = await self._objects.get(vk, max_bytes=MAX_KEY_BYTES)
        await asyncio.to_thread(VerifyingKey.from_bytes, raw)
        row = SetupRow(sha256, network, vk, pk, Setup(by, address, text, signature))
        await self._store.add_setup(row, int(self._clock()))
        return row

    # --- the queue

    async def run(self) -> None:
        """Prove what is queued, one after the other, until cancelled."""
        pruned_at = 0.0
        while True:
            self._queued.clear()
            try:
                if self._clock() > pruned_at + 3600:
                    pruned_at = self._clock()
                    await self._store.prune(int(self._clock()) - KEEP_S)
                now = int(self._clock())
                row = await self._store.claim(now, now + self._rules.lease_s)
            except DATABASE_ERRORS as error:
                log.warning("proofs wait: %s", error)
                row = None
            if row is None:
                with suppress(TimeoutError):  # other replicas queue proofs too: look again
                    async with asyncio.timeout(_POLL_S):
                        await self._queued.wait()
                continue
            await self._work(row)

    async def _work(self, row: ProofRow) -> None:
        started = time.perf_counter()
        document: Hash32 | None = None
        error, again = None, False
        try:
            document = await self._objects.put((await self._prove(row)).encode())
            _SECONDS.observe(time.perf_counter() - started)
        except (VerificationFailed, InvalidInput, ModeUnavailable) as failure:
            error = failure.message
        except PlacetError as failure:
            error, again = failure.message, row.attempts < _ATTEMPTS
        except Exception as failure:
            log.exception("proof %s", row.id.hex())
            error = f"{type(failure).__name__}"
        outcome = "done" if document is not None else "again" if again else "failed"
        if error is not None:
            log.warning("proof %s: %s: %s", row.id.hex(), outcome, error)
        _ENDED.labels(outcome).inc()
        try:
            await self._store.end(row, document_sha256=document, error=error, again=again)
        except DATABASE_ERRORS as failure:
            log.warning("proof %s: its end could not be noted, so it is made again: %s", row.id.hex(), failure)
        if again:
            await asyncio.sleep(_POLL_S)

    async def _prove(self, row: ProofRow) -> ProofDocument:
        statement = statement_of(jsonx.parse(row.statement, field="statement", max_bytes=MAX_DOCUMENT_BYTES, max_depth=4))
        setup = await self._store.setup_by_key(row.vk_sha256)
        if setup is None:
            raise VerificationFailed("its keys are gone", field="vk")
        version = await self._hub.by_digest(row.model_sha256)
        folder = self._folder / row.model_sha256.hex()
        model, pk, vk = folder / "model.onnx", folder / f"{setup.pk_sha256.hex()}.pk", folder / f"{setup.vk_sha256.hex()}.vk"
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        for file in version.manifest.files:
            path = folder / file.path
            if not await asyncio.to_thread(path.is_file):
                await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
                await self._objects.fetch(file.sha256, path, max_bytes=file.size)
        for digest, path, most in ((setup.pk_sha256, pk, MAX_PROVING_KEY_BYTES), (setup.vk_sha256, vk, MAX_KEY_BYTES)):
            if not await asyncio.to_thread(path.is_file):
                await self._objects.fetch(digest, path, max_bytes=most)
        proof, outputs = await self._system.prove(model, pk, vk, statement.inputs)
        if tuple(outputs) != statement.outputs:
            raise VerificationFailed("the proof is for other outputs than were answered", field="outputs")
        return ProofDocument(statement, await asyncio.to_thread(vk.read_bytes), proof, setup.setup)

    async def close(self) -> None:
        """End the prover."""
        await self._system.close()
