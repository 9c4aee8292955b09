"""The domain's types. Bytes and JSON become these once, at the edge, with every check (see `wire` and `api`); inside they are trusted.

Amounts are Python integers (wei), times are unix seconds, hashes are 32 raw bytes, addresses are 20 raw bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NewType

from placet.core.errors import InvalidInput

Address = NewType("Address", bytes)
Hash32 = NewType("Hash32", bytes)

ZERO_HASH = Hash32(bytes(32))
ZERO_ADDRESS = Address(bytes(20))

UINT256_MAX = (1 << 256) - 1
UINT64_MAX = (1 << 64) - 1


def address_from(value: str | bytes, *, field: str = "address") -> Address:
    """A 20-byte address from raw bytes or 0x hex (any case; a checksum is not demanded).

    Raises:
        InvalidInput: anything else.
    """
    if isinstance(value, bytes):
        if len(value) != 20:
            raise InvalidInput(f"{field}: an address has 20 bytes, got {len(value)}", field=field)
        return Address(value)
    return Address(_unhex(value, 20, field))


def hash_from(value: str | bytes, *, field: str = "hash") -> Hash32:
    """32 raw bytes from raw bytes or 0x hex. Raises InvalidInput otherwise."""
    if isinstance(value, bytes):
        if len(value) != 32:
            raise InvalidInput(f"{field}: 32 bytes wanted, got {len(value)}", field=field)
        return Hash32(value)
    return Hash32(_unhex(value, 32, field))


def _unhex(value: str, size: int, field: str) -> bytes:
    if not isinstance(value, str) or len(value) != 2 + 2 * size or not value.startswith("0x"):
        raise InvalidInput(f"{field}: 0x and {2 * size} hex digits wanted", field=field)
    try:
        raw = bytes.fromhex(value[2:])
    except ValueError:
        raise InvalidInput(f"{field}: not hexadecimal", field=field) from None
    if len(raw) != size:  # fromhex passes over white space
        raise InvalidInput(f"{field}: not hexadecimal", field=field)
    return raw


def hex0x(value: bytes) -> str:
    """Lower-case 0x hex."""
    return "0x" + value.hex()


class Ordering(IntEnum):
    """Which counter of the client an attestation is bound to (architecture §4)."""

    FREE = 0
    SENDER = 1
    CLIENT = 2


class BindingSource(IntEnum):
    """Where a PolicyData argument comes from."""

    CONST = 0
    PARAMS = 1
    INTENT = 2
    CALLER = 3


@dataclass(frozen=True, slots=True)
class Intent:
    """What a sender wants done. `value` in wei, `deadline` in unix seconds, `nonce` an unordered bit (word = nonce >> 8)."""

    sender: Address  # `from` on the wire
    to: Address
    value: int
    data: bytes
    chain_id: int
    function_signature: str
    nonce: int
    deadline: int


@dataclass(frozen=True, slots=True)
class Attachment:
    """Something a task refers to by content: a receipt, a document."""

    kind: str
    sha256: Hash32
    uri: str


@dataclass(frozen=True, slots=True)
class Leaf:
    """One decision, as it is signed (inside a Merkle root) and as a contract judges it."""

    task_id: Hash32
    policy_client: Address
    policy_id: Hash32
    intent_hash: Hash32
    sequence: int
    allow: bool
    output: Hash32
    evidence: Hash32
    expiration: int


@dataclass(frozen=True, slots=True)
class Certificate:
    """The BLS message: one root over `count` leaves, by the operator set of `epoch`, made at `timestamp` (the batch's)."""

    root: Hash32
    count: int
    epoch: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class RegoModule:
    """One Rego file. The name is part of the policy's identity: reasons and coverage speak of it."""

    name: str
    source: bytes


@dataclass(frozen=True, slots=True)
class ArgumentBinding:
    """Binds argument `name` of the policy's PolicyData number `policy_data` to its source.

    `value` is JSON text (CONST), a JSON pointer into params (PARAMS) or the decoded intent (INTENT), or the caller's name for it (CALLER).
    """

    policy_data: int
    name: str
    source: BindingSource
    value: str


@dataclass(frozen=True, slots=True)
class GovernedCall:
    """A function that the policy judges. `target` is ignored when `to_self` (the policy client itself).

    `unpack` is empty, or JSON: how `bytes` arguments are to be read (see `calls`).
    """

    to_self: bool
    target: Address
    signature: str
    unpack: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """What to check. Its id covers everything that decides an outcome: content, engine and limits."""

    modules: tuple[RegoModule, ...]
    entrypoint: str
    params: bytes
    schema: bytes
    policy_data_ids: tuple[Hash32, ...]
    bindings: tuple[ArgumentBinding, ...]
    calls: tuple[GovernedCall, ...]
    ordering: Ordering
    valid_for: int
    retry_after: int
    inference: bytes
    engine_sha256: Hash32
    rego_fuel: int
    rego_memory: int


@dataclass(frozen=True, slots=True)
class Task:
    """One intent to be judged. Its id is a function of this and of its batch; nobody sends it."""

    policy_client: Address
    intent: Intent
    salt: Hash32
    signature: bytes = b""
    args: bytes = b""
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """Tasks of one (chain, validator, policy, epoch), judged at one moment over one block."""

    chain_id: int
    validator: Address
    policy_id: Hash32
    epoch: int
    timestamp: int
    block_number: int
    block_hash: Hash32
    observe_for_ms: int
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of an epoch. Keys are public: BLS compressed (48 bytes), Ed25519 (32 bytes)."""

    address: Address
    key_id: Hash32
    bls_key: bytes
    bus_key: bytes
    stake: int


@dataclass(frozen=True, slots=True)
class OperatorSet:
    """The operators of one epoch, ascending by key id (the bitmap's order).

    `vacant_stake` counts in the total and is signed by nobody: the stake of keys ejected less than an activation delay ago.
    """

    epoch: int
    operators: tuple[Operator, ...]
    vacant_stake: int = 0
    total_stake: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total_stake", self.vacant_stake + sum(operator.stake for operator in self.operators))
        if any(a.key_id >= b.key_id for a, b in zip(self.operators, self.operators[1:], strict=False)):
            raise InvalidInput("operators must be strictly ascending by key id", field="operators")

    def by_address(self, address: Address) -> Operator | None:
        """The operator registered under `address`, if any."""
        return next((operator for operator in self.operators if operator.address == address), None)

    def stake_of(self, addresses: frozenset[Address]) -> int:
        """Stake of all operators whose address is in `addresses`."""
        return sum(operator.stake for operator in self.operators if operator.address in addresses)


@dataclass(frozen=True, slots=True)
class Pins:
    """What a policy client demands of an attestation, read at a block."""

    policy_id: Hash32
    ordering: Ordering
    quorum_bps: int
    epoch_grace_s: int
    max_certificate_age_s: int
