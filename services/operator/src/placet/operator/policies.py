"""The policies this operator evaluates: loaded from the object store, checked, admitted, kept prepared.

Admission refuses by size and structure only, with a published checker version; whatever this machine cannot do just now is "not yet", never
"refused" (threats 29).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from placet.core import topics, wire
from placet.core.agreement import Component
from placet.core.bundle import PolicyBundle, PolicyDataArtefact, load_bundle
from placet.core.bus import Bus, Snapshot
from placet.core.envelope import BusSigner, Kind, open_envelope
from placet.core.errors import InvalidInput, NotFound, TooLarge, Unavailable, VerificationFailed
from placet.core.messages import Admission
from placet.core.objects import ObjectStore
from placet.core.types import Address, BindingSource, Hash32, Policy, hex0x
from placet.operator.admissions import Admissions
from placet.sandbox.check import CHECKER_VERSION, Finding
from placet.sandbox.errors import PolicyRejected, SandboxUnavailable
from placet.sandbox.manifest import Manifest
from placet.sandbox.rego import CompiledPolicy, DataSection, PolicySource, RegoEngine, RegoLimits

log = logging.getLogger(__name__)

_KEPT = 256
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 600.0
_LONGEST_PAUSE_FOR_THE_STORE_S = 30.0


@dataclass(frozen=True, slots=True)
class PolicyDataInfo:
    """One admitted PolicyData: what agreement needs of it, and whether it can differ between operators at all (`pure`: it cannot)."""

    artefact: PolicyDataArtefact
    manifest: Manifest
    component: Component
    newton: bool
    pure: bool
    """It can reach nothing but the task's timestamp, so operators need not agree on what it says."""
    needs_secrets: bool


class ComponentAdmission(Protocol):
    """Checks Rego, checks and compiles PolicyData components: strangers' bytes, so not in this process."""

    async def admit(self, artefact: PolicyDataArtefact) -> PolicyDataInfo:
        """Raises InvalidInput (refused) or Unavailable (not yet)."""

    async def check(self, modules: Mapping[str, str], entrypoint: str, policy_id: Hash32) -> list[Finding]:
        """What speaks against a policy's Rego. Raises Unavailable (not yet)."""


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy ready to be evaluated."""

    bundle: PolicyBundle
    compiled: CompiledPolicy
    data: tuple[PolicyDataInfo, ...]

    @property
    def policy(self) -> Policy:
        """The policy."""
        return self.bundle.policy

    @property
    def components(self) -> tuple[Component, ...]:
        """What agreement needs."""
        return tuple(item.component for item in self.data)

    @property
    def needs_observation(self) -> bool:
        """Whether operators must observe and agree first: it has a PolicyData that can reach something outside."""
        return any(not item.pure for item in self.data)


def policy_source(policy: Policy) -> PolicySource:
    """What the Rego sandbox prepares; params are static, so they are part of the prepared image."""
    return PolicySource(
        {module.name: module.source.decode() for module in policy.modules},
        policy.entrypoint,
        (DataSection("params", policy.params.decode()),),
        RegoLimits(policy.rego_fuel, policy.rego_memory),
    )


@dataclass(frozen=True, slots=True)
class _Pause:
    """After a failed admission: how long it is (seconds), and until when (monotonic clock)."""

    length_s: float
    until: float
    why: str


class PolicyStore:
    """Follows `placet.policies.v1`, admits what it can, and announces the outcome on `placet.admissions.v1`."""

    def __init__(
        self,
        *,
        bus: Bus,
        objects: ObjectStore,
        engine: RegoEngine,
        components: ComponentAdmission,
        operator: Address,
        bus_signer: BusSigner,
        publishers: frozenset[bytes],
    ) -> None:
        self._bus = bus
        self._objects = objects
        self._engine = engine
        self._components = components
        self._admissions = Admissions(bus, operator, bus_signer)
        self._publishers = publishers
        self._loaded: OrderedDict[Hash32, LoadedPolicy] = OrderedDict()
        self._announced: dict[Hash32, Hash32] = {}
        self._loading: dict[Hash32, asyncio.Lock] = {}
        self._pauses: dict[Hash32, _Pause] = {}
        self._refused: OrderedDict[Hash32, str] = OrderedDict()
        self._waiting: dict[Hash32, asyncio.TimerHandle] = {}
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._snapshot: Snapshot | None = None

    def _key_of(self, kind: Kind, sender: bytes) -> bytes | None:
        return sender if kind is Kind.POLICY_ANNOUNCEMENT and sender in self._publishers else None

    async def start(self) -> None:
        """Read what is announced now; admission goes on in `run`."""
        self._snapshot = await self._bus.snapshot(topics.POLICIES)

    async def run(self) -> None:
        """Admit every policy announced, now and later."""
        assert self._snapshot is not None
        pending: asyncio.Queue[tuple[bytes, bytes | None]] = asyncio.Queue()
        for key, record in self._snapshot.items():
            pending.put_nowait((key, record.value))

        async def follow() -> None:
            assert self._snapshot is not None
            async for record in self._snapshot.changes():
                pending.put_nowait((record.key or b"", record.value))

        async with asyncio.TaskGroup() as group:
            group.create_task(follow())
            group.create_task(self._admissions.run())
            while True:
                key, value = await pending.get()
                if value is not None:
                    await self._announcement(key, value, pending)

    async def stop(self) -> None:
        """Stop following."""
        for handle in self._waiting.values():
            handle.cancel()
        self._admissions.stop()
        self._preparing.shutdown(wait=False, cancel_futures=True)
        if self._snapshot is not None:
            await self._snapshot.close()

    async def _announcement(self, key: bytes, value: bytes, pending: asyncio.Queue[tuple[bytes, bytes | None]]) -> None:
        try:
            announcement = wire.decode_policy_announcement(open_envelope(value, self._key_of).payload)
            if announcement.policy_id != key:
                raise VerificationFailed("the record's key is not its policy id", field="key")
        except (InvalidInput, VerificationFailed) as error:
            log.warning("policy announcement ignored: %s", error)
            return
        self._announced[announcement.policy_id] = announcement.bundle_sha256
        if announcement.policy_id in self._waiting:
            return  # it is tried when its pause is over; announcing it again does not end that
        try:
            await self.get(announcement.policy_id)
        except (InvalidInput, VerificationFailed) as error:
            await self._admissions.say(Admission(announcement.policy_id, admitted=False, checker=CHECKER_VERSION, reason=str(error)))
            log.warning("policy %s refused: %s", hex0x(announcement.policy_id), error)
        except (OverflowError, ValueError, TypeError) as error:  # a bundle of which no id can be made
            reason = f"its bundle is malformed ({type(error).__name__})"
            await self._admissions.say(Admission(announcement.policy_id, admitted=False, checker=CHECKER_VERSION, reason=reason))
            log.warning("policy %s refused: %s", hex0x(announcement.policy_id), reason)
        except (Unavailable, NotFound) as error:
            log.warning("policy %s not admitted yet: %s", hex0x(announcement.policy_id), error)
            self._try_again(announcement.policy_id, (key, value), pending)
        else:
            await self._admissions.say(Admission(announcement.policy_id, admitted=True, checker=CHECKER_VERSION, reason=""))
            log.info("policy %s admitted", hex0x(announcement.policy_id))

    def _try_again(self, policy_id: Hash32, item: tuple[bytes, bytes | None], pending: asyncio.Queue[tuple[bytes, bytes | None]]) -> None:
        def again() -> None:
            self._waiting.pop(policy_id, None)
            pending.put_nowait(item)

        pause = self._pauses.get(policy_id)
        delay_s = max(0.0, pause.until - time.monotonic()) if pause is not None else _FIRST_PAUSE_S
        self._waiting[policy_id] = asyncio.get_running_loop().call_later(delay_s, again)

    async def get(self, policy_id: Hash32) -> LoadedPolicy:
        """A policy, loaded and prepared.

        Raises:
            NotFound: nobody announced it.
            InvalidInput, VerificationFailed: it cannot be admitted.
            Unavailable: not now. It is tried again after a pause, each twice as long as the one before.
        """
        found = self._loaded.get(policy_id)
        if found is not None:
            self._loaded.move_to_end(policy_id)
            return found
        if policy_id not in self._announced:
            raise NotFound("nobody announced this policy", field="policyId")
        async with self._loading.setdefault(policy_id, asyncio.Lock()):
            if policy_id in self._loaded:
                return self._loaded[policy_id]
            if policy_id in self._refused:
                raise InvalidInput(self._refused[policy_id], field="policyId")
            pause = self._pauses.get(policy_id)
            if pause is not None and time.monotonic() < pause.until:
                raise Unavailable(pause.why)
            try:
                bundle = await self._load(policy_id, self._announced[policy_id])
            except (Unavailable, NotFound) as error:
                self._pause(policy_id, str(error), _LONGEST_PAUSE_FOR_THE_STORE_S)
                raise
            try:
                loaded = await self._admit(bundle)
            except Unavailable as error:
                self._pause(policy_id, str(error), _LONGEST_PAUSE_S)
                raise
            except InvalidInput as error:
                self._refused[policy_id] = str(error)
                _keep_newest(self._refused)
                raise
            self._pauses.pop(policy_id, None)
            self._loaded[policy_id] = loaded
            _keep_newest(self._loaded)
            return loaded

    def _pause(self, policy_id: Hash32, why: str, longest_s: float) -> None:
        before = self._pauses.get(policy_id)
        length_s = _FIRST_PAUSE_S if before is None else min(2 * before.length_s, longest_s)
        self._pauses[policy_id] = _Pause(length_s, time.monotonic() + length_s, why)

    async def _load(self, policy_id: Hash32, address: Hash32) -> PolicyBundle:
        try:
            return await load_bundle(self._objects, address, policy_id)
        except (VerificationFailed, TooLarge) as error:
            # Bytes that are not what their digest or the id names say nothing of the policy: others may write to the store.
            raise Unavailable(f"the store does not hold what was announced: {error}") from None

    async def _admit(self, bundle: PolicyBundle) -> LoadedPolicy:
        policy = bundle.policy
        if policy.engine_sha256.hex() != self._engine.sha256:
            raise InvalidInput(f"engine: this operator runs {self._engine.sha256}", field="engineSha256")
        try:
            modules: Mapping[str, str] = {module.name: module.source.decode() for module in policy.modules}
        except UnicodeDecodeError:
            raise InvalidInput("modules: not UTF-8", field="modules") from None
        data = tuple([await self._components.admit(artefact) for artefact in bundle.policy_data])
        check_bindings(policy, data)
        try:
            findings = await self._components.check(modules, policy.entrypoint, bundle.id)
            if findings:
                raise InvalidInput(f"rego: {'; '.join(map(str, findings[:5]))}", field="modules")
            # In this process, since its image is evaluated here; bounded by the engine's fuel, and one at a time.
            prepare = partial(self._engine.policy, policy_id_key(bundle), lambda: policy_source(policy))
            compiled = await asyncio.get_running_loop().run_in_executor(self._preparing, prepare)
        except PolicyRejected as error:
            raise InvalidInput(f"rego: {error}", field="modules") from None
        except SandboxUnavailable as error:
            raise Unavailable(f"sandbox: {error}") from None
        return LoadedPolicy(bundle, compiled, data)


def _keep_newest(items: OrderedDict[Hash32, Any]) -> None:
    while len(items) > _KEPT:
        items.popitem(last=False)


def policy_id_key(bundle: PolicyBundle) -> str:
    """Key of a prepared image: the policyId, never the Rego alone."""
    return bundle.id.hex()


def check_bindings(policy: Policy, data: Sequence[PolicyDataInfo]) -> None:
    """Every argument a component requires is bound; none that names an endpoint, a contract or a subject is the caller's (threats 3).

    Raises:
        InvalidInput: naming the argument.
    """
    bound = {(binding.policy_data, binding.name): binding for binding in policy.bindings}
    for position, info in enumerate(data):
        for name in sorted(info.manifest.arguments.required):
            if (position, name) not in bound:
                raise InvalidInput(f"bindings: argument {name!r} of PolicyData {position} is bound to nothing", field="bindings")
        for (at, name), binding in bound.items():
            if at != position:
                continue
            if name not in info.manifest.arguments.properties:
                raise InvalidInput(f"bindings: PolicyData {position} has no argument {name!r}", field="bindings")
            place = f"/{name}"
            forbidden = [p for p in info.manifest.caller_forbidden if p == place or p.startswith(place + "/")]
            if binding.source is BindingSource.CALLER and forbidden:
                message = f"bindings: {forbidden[0]} of PolicyData {position} may not be the caller's: it is what is looked at or screened"
                raise InvalidInput(message, field="bindings")
