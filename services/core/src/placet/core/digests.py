"""Every digest of docs/reference/signed-types.md. Pure; Solidity computes the same (golden vectors in contracts/test/vectors).

Sources: EIP-712 (hashStruct, domain separator), RFC 6962 (tree, see `merkle`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence

from placet.core.keccak import keccak256
from placet.core.types import (
    ZERO_HASH,
    Address,
    Attachment,
    Certificate,
    Hash32,
    Intent,
    Leaf,
    Policy,
    RegoModule,
    Task,
    TaskBatch,
)


def _u(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _a(value: bytes) -> bytes:
    return value.rjust(32, b"\0")


def _dyn(value: bytes) -> bytes:
    return keccak256(value)


def _text(value: str) -> bytes:
    return keccak256(value.encode())


def _array(members: Iterable[bytes]) -> bytes:
    return keccak256(b"".join(members))


def _type(text: str) -> bytes:
    return keccak256(text.encode())


DOMAIN_TYPE = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
INTENT_TYPE = (
    "Intent(address from,address to,uint256 value,bytes data,uint256 chainId,string functionSignature,uint256 nonce,uint64 deadline)"
)
LEAF_TYPE = (
    "Leaf(bytes32 taskId,address policyClient,bytes32 policyId,bytes32 intentHash,uint64 sequence,bool allow,bytes32 output,"
    "bytes32 evidence,uint64 expiration)"
)
CERTIFICATE_TYPE = "Certificate(bytes32 root,uint32 count,uint64 epoch,uint64 timestamp)"
REGISTER_KEY_TYPE = "RegisterKey(address operator,bytes32 keyId,bytes32 busKey)"
TASK_TYPE = (
    "Task(uint256 chainId,address validator,address policyClient,bytes32 policyId,bytes32 intentHash,bytes32 argsHash,uint64 timestamp)"
)
ATTACHMENT_TYPE = "Attachment(string kind,bytes32 sha256,string uri)"
ARGUMENTS_TYPE = "Arguments(bytes args,Attachment[] attachments,bytes32 salt)" + ATTACHMENT_TYPE
BATCH_TASK_TYPE = "BatchTask(bytes32 taskId,bytes32 salt,bytes32 signatureHash)"
TASK_BATCH_TYPE = (
    "TaskBatch(uint256 chainId,address validator,bytes32 policyId,uint64 epoch,uint64 timestamp,uint64 blockNumber,bytes32 blockHash,"
    "uint32 observeForMs,BatchTask[] tasks)" + BATCH_TASK_TYPE
)
REGO_MODULE_TYPE = "RegoModule(string name,bytes source)"
ARGUMENT_BINDING_TYPE = "ArgumentBinding(uint32 policyData,string name,uint8 source,string value)"
GOVERNED_CALL_TYPE = "GovernedCall(bool self,address target,string signature,string unpack)"
POLICY_TYPE = (
    "Policy(RegoModule[] modules,string entrypoint,bytes params,bytes schema,bytes32[] policyDataIds,ArgumentBinding[] bindings,"
    "GovernedCall[] calls,uint8 ordering,uint64 validFor,uint64 retryAfter,bytes inference,bytes32 engineSha256,uint64 regoFuel,"
    "uint64 regoMemory)" + ARGUMENT_BINDING_TYPE + GOVERNED_CALL_TYPE + REGO_MODULE_TYPE
)
EVIDENCE_TYPE = "Evidence(bytes32 intent,bytes32 arguments,bytes32 params,bytes32 data,bytes32 observations,bytes32 decision)"
EVIDENCE_PART_TYPE = "EvidencePart(string name,bytes32 salt,bytes content)"

_DOMAIN = _type(DOMAIN_TYPE)
_INTENT = _type(INTENT_TYPE)
_LEAF = _type(LEAF_TYPE)
_CERTIFICATE = _type(CERTIFICATE_TYPE)
_REGISTER_KEY = _type(REGISTER_KEY_TYPE)
_TASK = _type(TASK_TYPE)
_ATTACHMENT = _type(ATTACHMENT_TYPE)
_ARGUMENTS = _type(ARGUMENTS_TYPE)
_BATCH_TASK = _type(BATCH_TASK_TYPE)
_TASK_BATCH = _type(TASK_BATCH_TYPE)
_REGO_MODULE = _type(REGO_MODULE_TYPE)
_ARGUMENT_BINDING = _type(ARGUMENT_BINDING_TYPE)
_GOVERNED_CALL = _type(GOVERNED_CALL_TYPE)
_POLICY = _type(POLICY_TYPE)
_EVIDENCE = _type(EVIDENCE_TYPE)
_EVIDENCE_PART = _type(EVIDENCE_PART_TYPE)


@functools.lru_cache(maxsize=4096)
def domain_separator(name: str, chain_id: int, verifying_contract: Address) -> bytes:
    """EIP-712 domain separator, version "1"."""
    return keccak256(_DOMAIN + _text(name) + _text("1") + _u(chain_id) + _a(verifying_contract))


def typed_digest(separator: bytes, struct_hash: bytes) -> Hash32:
    """EIP-712 `keccak(0x1901 ‖ domainSeparator ‖ hashStruct)`."""
    return Hash32(keccak256(b"\x19\x01" + separator + struct_hash))


def intent_struct_hash(intent: Intent) -> bytes:
    """hashStruct(Intent)."""
    return keccak256(
        _INTENT
        + _a(intent.sender)
        + _a(intent.to)
        + _u(intent.value)
        + _dyn(intent.data)
        + _u(intent.chain_id)
        + _text(intent.function_signature)
        + _u(intent.nonce)
        + _u(intent.deadline)
    )


def intent_hash(intent: Intent, policy_client: Address) -> Hash32:
    """The digest a sender signs: good for one client on one chain (threats 5)."""
    return typed_digest(domain_separator("Placet Intent", intent.chain_id, policy_client), intent_struct_hash(intent))


def attachments_hash(attachments: Sequence[Attachment]) -> bytes:
    """Hash of the attachment array."""
    return _array(keccak256(_ATTACHMENT + _text(item.kind) + item.sha256 + _text(item.uri)) for item in attachments)


def args_hash(args: bytes, attachments: Sequence[Attachment] = (), salt: bytes = ZERO_HASH) -> Hash32:
    """hashStruct(Arguments): caller arguments, attachments, and the task's salt.

    With the salt in it, everything a leaf depends on is in the taskId: one id never has two different honest leaves (threats 20).
    """
    return Hash32(keccak256(_ARGUMENTS + _dyn(args) + attachments_hash(attachments) + salt))


def task_id(
    *,
    chain_id: int,
    validator: Address,
    policy_client: Address,
    policy_id: Hash32,
    intent_hash: Hash32,
    args_hash: Hash32,
    timestamp: int,
) -> Hash32:
    """hashStruct(Task). A later attempt is another task because its timestamp differs (threats 11)."""
    return Hash32(keccak256(_TASK + _u(chain_id) + _a(validator) + _a(policy_client) + policy_id + intent_hash + args_hash + _u(timestamp)))


def task_id_in(batch: TaskBatch, task: Task) -> Hash32:
    """The id of `task` as a member of `batch`."""
    return task_id(
        chain_id=batch.chain_id,
        validator=batch.validator,
        policy_client=task.policy_client,
        policy_id=batch.policy_id,
        intent_hash=intent_hash(task.intent, task.policy_client),
        args_hash=args_hash(task.args, task.attachments, task.salt),
        timestamp=batch.timestamp,
    )


def batch_id(batch: TaskBatch, task_ids: Sequence[Hash32]) -> Hash32:
    """hashStruct(TaskBatch). `task_ids` are those of `batch.tasks`, in order (computed by the caller, who needs them too)."""
    members = (
        keccak256(_BATCH_TASK + identity + task.salt + _dyn(task.signature)) for identity, task in zip(task_ids, batch.tasks, strict=True)
    )
    return Hash32(
        keccak256(
            _TASK_BATCH
            + _u(batch.chain_id)
            + _a(batch.validator)
            + batch.policy_id
            + _u(batch.epoch)
            + _u(batch.timestamp)
            + _u(batch.block_number)
            + batch.block_hash
            + _u(batch.observe_for_ms)
            + _array(members)
        )
    )


def leaf_struct_hash(leaf: Leaf) -> bytes:
    """hashStruct(Leaf)."""
    return keccak256(
        _LEAF
        + leaf.task_id
        + _a(leaf.policy_client)
        + leaf.policy_id
        + leaf.intent_hash
        + _u(leaf.sequence)
        + _u(int(leaf.allow))
        + leaf.output
        + leaf.evidence
        + _u(leaf.expiration)
    )


def certificate_digest(certificate: Certificate, chain_id: int, validator: Address) -> Hash32:
    """The 32 bytes that operators sign with BLS."""
    struct = keccak256(_CERTIFICATE + certificate.root + _u(certificate.count) + _u(certificate.epoch) + _u(certificate.timestamp))
    return typed_digest(domain_separator("Placet", chain_id, validator), struct)


def register_key_digest(operator: Address, key_id: Hash32, bus_key: bytes, chain_id: int, registry: Address) -> Hash32:
    """Signed with the BLS key at registration: binds the key to the operator and to its bus key."""
    struct = keccak256(_REGISTER_KEY + _a(operator) + key_id + bus_key)
    return typed_digest(domain_separator("Placet Registry", chain_id, registry), struct)


def policy_data_id(component: bytes, manifest: bytes) -> Hash32:
    """Identity of a PolicyData: the component's bytes and its manifest's (threats 13)."""
    return Hash32(keccak256(hashlib.sha256(component).digest() + keccak256(manifest)))


def modules_hash(modules: Sequence[RegoModule]) -> bytes:
    """Hash of the module array, sorted by name."""
    return _array(keccak256(_REGO_MODULE + _text(item.name) + _dyn(item.source)) for item in sorted(modules, key=lambda m: m.name))


def policy_preimage(policy: Policy) -> dict[str, bytes | int]:
    """The members of hashStruct(Policy) after the type hash, as `PolicyRegistry.publish` takes them (dynamic members already hashed)."""
    return {
        "modulesHash": modules_hash(policy.modules),
        "entrypointHash": _text(policy.entrypoint),
        "paramsHash": _dyn(policy.params),
        "schemaHash": _dyn(policy.schema),
        "policyDataIdsHash": _array(policy.policy_data_ids),
        "bindingsHash": _array(
            keccak256(_ARGUMENT_BINDING + _u(b.policy_data) + _text(b.name) + _u(int(b.source)) + _text(b.value)) for b in policy.bindings
        ),
        "callsHash": _array(
            keccak256(_GOVERNED_CALL + _u(int(c.to_self)) + _a(c.target) + _text(c.signature) + _text(c.unpack)) for c in policy.calls
        ),
        "ordering": int(policy.ordering),
        "validFor": policy.valid_for,
        "retryAfter": policy.retry_after,
        "inferenceHash": _dyn(policy.inference),
        "engineSha256": policy.engine_sha256,
        "regoFuel": policy.rego_fuel,
        "regoMemory": policy.rego_memory,
    }


def policy_id(policy: Policy) -> Hash32:
    """hashStruct(Policy): the same content, engine and limits have the same id on every chain."""
    members = policy_preimage(policy).values()
    return Hash32(keccak256(_POLICY + b"".join(_u(m) if isinstance(m, int) else m for m in members)))


def key_id(encoded_key: bytes) -> Hash32:
    """keccak of the whole 128-byte EIP-2537 encoding of a G1 key (facts/bls-evm.md, pitfall 7)."""
    if len(encoded_key) != 128:
        raise ValueError("a G1 key has 128 bytes in EIP-2537 encoding")
    return Hash32(keccak256(encoded_key))


def action_key(policy_client: Address, intent: Intent) -> Hash32:
    """What `retryAfter` is counted by: the same client, sender, target, value and data."""
    return Hash32(keccak256(_a(policy_client) + _a(intent.sender) + _a(intent.to) + _u(intent.value) + _dyn(intent.data)))


def part_salt(task_salt: Hash32, name: str) -> Hash32:
    """Salt of one evidence part."""
    return Hash32(keccak256(task_salt + _text(name)))


def evidence_part_hash(name: str, salt: Hash32, content: bytes) -> Hash32:
    """hashStruct(EvidencePart)."""
    return Hash32(keccak256(_EVIDENCE_PART + _text(name) + salt + _dyn(content)))


EVIDENCE_PARTS = ("intent", "arguments", "params", "data", "observations", "decision")


def evidence_hash(parts: dict[str, Hash32]) -> Hash32:
    """hashStruct(Evidence) from its parts' hashes."""
    return Hash32(keccak256(_EVIDENCE + b"".join(parts[name] for name in EVIDENCE_PARTS)))
