"""What the gateway knows of policies: their bundles, and whether operators with quorum stake have admitted them."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable

from placet.core import topics, wire
from placet.core.bundle import PolicyBundle, load_bundle
from placet.core.bus import Bus, Record, Snapshot
from placet.core.envelope import BusSigner, Kind, open_envelope, seal
from placet.core.errors import InvalidInput, NotFound, VerificationFailed
from placet.core.messages import Admission, PolicyAnnouncement
from placet.core.objects import ObjectStore
from placet.core.stake import meets
from placet.core.types import Address, Hash32, OperatorSet

log = logging.getLogger(__name__)
_KEPT = 256
_KEPT_BYTES = 256 << 20
_KNOWN_OPERATORS = 4096


class PolicyBook:
    """Reads `placet.policies.v1` and `placet.admissions.v1`; announces policies that are published here."""

    def __init__(self, bus: Bus, objects: ObjectStore, signer: BusSigner) -> None:
        self._bus = bus
        self._objects = objects
        self._signer = signer
        self._policies: Snapshot | None = None
        self._admissions: Snapshot | None = None
        self._bundles: OrderedDict[Hash32, PolicyBundle] = OrderedDict()
        self._loading = asyncio.Lock()
        self._bus_keys: OrderedDict[Address, bytes] = OrderedDict()

    async def start(self) -> None:
        """Read both topics to their end."""
        self._policies = await self._bus.snapshot(topics.POLICIES)
        self._admissions = await self._bus.snapshot(topics.ADMISSIONS, self._replaces)

    def learn(self, operators: OperatorSet) -> None:
        """The keys that admissions of these operators are signed with. What is signed with no known key replaces nothing that is."""
        for operator in operators.operators:
            self._bus_keys[operator.address] = operator.bus_key
            self._bus_keys.move_to_end(operator.address)
        while len(self._bus_keys) > _KNOWN_OPERATORS:
            self._bus_keys.popitem(last=False)

    def _replaces(self, old: Record | None, new: Record) -> bool:
        """Any operator may write under any key. An operator's newest word stands; a removal, or what is not its word, replaces no word."""
        before = self._word(old) if old is not None else None
        said = self._word(new)
        if said is None:
            return before is None
        return before is None or said.said_at >= before.said_at

    def _word(self, record: Record) -> Admission | None:
        """The admission in a record, if its key names the policy and the operator that signed it."""
        if record.value is None or record.key is None or len(record.key) != 52:
            return None
        policy_id, address = Hash32(record.key[:32]), Address(record.key[32:])
        bus_key = self._bus_keys.get(address)
        try:
            message = open_envelope(record.value, lambda kind, sender: bus_key if kind is Kind.ADMISSION and sender == address else None)
            admission = wire.decode_admission(message.payload)
        except (InvalidInput, VerificationFailed):
            return None
        return admission if admission.policy_id == policy_id else None

    async def stop(self) -> None:
        """Stop following."""
        for snapshot in (self._policies, self._admissions):
            if snapshot is not None:
                await snapshot.close()

    async def announce(self, policy_id: Hash32, bundle_sha256: Hash32, charge: Callable[[], None]) -> None:
        """Tell operators where a policy lies, if that is news to them: `charge` is called, and the bundle is loaded and checked first.
        What was announced with another key is news: operators may not know that key, or not any more.

        Raises:
            InvalidInput, VerificationFailed, NotFound: it is not that policy.
            RateLimited: `charge` says so.
        """
        if self._announced(policy_id, self._signer.public_key) == bundle_sha256:
            return  # operators have it: nothing is loaded, and nobody is told again
        if await self._objects.size_of(bundle_sha256) is None:
            raise NotFound("the object store does not hold this bundle", field="bundleSha256")
        charge()
        self._keep(await load_bundle(self._objects, bundle_sha256, policy_id))
        payload = wire.encode_policy_announcement(PolicyAnnouncement(policy_id, bundle_sha256))
        envelope = seal(self._signer, kind=Kind.POLICY_ANNOUNCEMENT, chain_id=0, sender=self._signer.public_key, payload=payload)
        await self._bus.publish(topics.POLICIES, policy_id, envelope)

    def _announced(self, policy_id: Hash32, by: bytes | None = None) -> Hash32 | None:
        """Where a policy was said to lie, by anybody or with one key."""
        record = self._policies.get(policy_id) if self._policies is not None else None
        if record is None or record.value is None:
            return None
        try:
            message = open_envelope(record.value, lambda kind, sender: sender if by in (None, sender) else None)
            return wire.decode_policy_announcement(message.payload).bundle_sha256
        except (InvalidInput, VerificationFailed):
            return None

    def _keep(self, bundle: PolicyBundle) -> None:
        self._bundles[bundle.id] = bundle
        self._bundles.move_to_end(bundle.id)
        while len(self._bundles) > 1 and (len(self._bundles) > _KEPT or sum(item.size for item in self._bundles.values()) > _KEPT_BYTES):
            self._bundles.popitem(last=False)

    def known(self) -> list[Hash32]:
        """Ids of all announced policies."""
        return [] if self._policies is None else [Hash32(key) for key in self._policies if len(key) == 32]

    async def bundle(self, policy_id: Hash32) -> PolicyBundle:
        """A policy's bundle. Content is checked against the id, so whoever announced it needs no trust.

        Raises:
            NotFound: nobody announced it.
        """
        found = self._bundles.get(policy_id)
        if found is not None:
            self._bundles.move_to_end(policy_id)
            return found
        address = self._announced(policy_id)
        if address is None:
            raise NotFound("nobody announced this policy", field="policyId")
        async with self._loading:
            if policy_id not in self._bundles:
                self._keep(await load_bundle(self._objects, address, policy_id))
        return self._bundles[policy_id]

    def admissions(self, policy_id: Hash32, operators: OperatorSet) -> dict[Address, Admission]:
        """What each operator of the set said of a policy; records whose signature does not hold are left out."""
        out: dict[Address, Admission] = {}
        if self._admissions is None:
            return out
        self.learn(operators)
        for operator in operators.operators:
            record = self._admissions.get(policy_id + operator.address)
            admission = self._word(record) if record is not None else None
            if admission is not None:
                out[operator.address] = admission
        return out

    def is_admitted(self, policy_id: Hash32, operators: OperatorSet, quorum_bps: int) -> bool:
        """Whether operators with quorum stake admitted it."""
        said = self.admissions(policy_id, operators)
        admitted = frozenset(address for address, admission in said.items() if admission.admitted)
        return meets(operators.stake_of(admitted), operators.total_stake, quorum_bps)
