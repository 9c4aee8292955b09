"""Calls of Placet's contracts and what they answer, by hand from docs/reference/signed-types.md. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eth_abi import abi

from placet.core import bls
from placet.core.digests import key_id as key_id_of
from placet.core.digests import policy_preimage
from placet.core.errors import VerificationFailed
from placet.core.keccak import keccak256
from placet.core.types import Address, Certificate, Hash32, Intent, Leaf, Operator, OperatorSet, Ordering, Pins, Policy

G1 = "(bytes32,bytes32,bytes32,bytes32)"
G2 = "(bytes32,bytes32,bytes32,bytes32,bytes32,bytes32,bytes32,bytes32)"
INTENT = "(address,address,uint256,bytes,uint256,string,uint256,uint64)"
LEAF = "(bytes32,address,bytes32,bytes32,uint64,bool,bytes32,bytes32,uint64)"
CERTIFICATE = "(bytes32,uint32,uint64,uint64)"
ATTESTATION = f"({LEAF},uint32,bytes32[],{CERTIFICATE},bool,bytes)"
QUORUM_PROOF = f"({G1},uint128,{G2},{G1}[])"
PINS = "(bytes32,uint8,uint16,uint32,uint32)"
OPERATOR_VIEW = f"(address,bytes32,{G1},bytes32,uint96)"
PREIMAGE = "(bytes32,bytes32,bytes32,bytes32,bytes32,bytes32,bytes32,uint8,uint64,uint64,bytes32,bytes32,uint64,uint64)"

MAX_OPERATORS_ANSWER = 200


def selector(signature: str) -> bytes:
    """First four bytes of keccak of a canonical signature."""
    return keccak256(signature.encode())[:4]


def encode_call(signature: str, *arguments: Any) -> bytes:
    """Calldata of `name(types)` with arguments."""
    inner = signature[signature.index("(") :]
    types = split_types(inner)
    return selector(signature) + abi.encode(types, arguments)


def split_types(tuple_text: str) -> list[str]:
    """Member types of `(type,…)`."""
    out, depth, start = [], 0, 1
    for position, character in enumerate(tuple_text):
        if character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
        if (character == "," and depth == 1) or (character == ")" and depth == 0):
            if position > start:
                out.append(tuple_text[start:position])
            start = position + 1
    return out


def words(encoded: bytes) -> tuple[bytes, ...]:
    """32-byte words of an EIP-2537 point: a Solidity struct of bytes32."""
    return tuple(encoded[i : i + 32] for i in range(0, len(encoded), 32))


# --- reads

PLACET_PINS = selector("placetPins()")
CURRENT_EPOCH = selector("currentEpoch()")


def sequence_of_call(client: Address, sender: Address, ordering: Ordering) -> bytes:
    """AttestationValidator.sequenceOf."""
    return encode_call("sequenceOf(address,address,uint8)", client, sender, int(ordering))


def operators_at_call(epoch: int) -> bytes:
    """OperatorRegistry.operatorsAt."""
    return encode_call("operatorsAt(uint64)", epoch)


def nonce_bitmap_call(client: Address, sender: Address, word: int) -> bytes:
    """AttestationValidator.nonceBitmap."""
    return encode_call("nonceBitmap(address,address,uint256)", client, sender, word)


def decode_uint(answer: bytes) -> int:
    """One integer.

    Raises:
        VerificationFailed: not 32 bytes (for instance, no contract there).
    """
    if len(answer) != 32:
        raise VerificationFailed("the contract did not answer with one word (is it deployed?)", field="chain")
    return int.from_bytes(answer, "big")


MAX_GRACE_S = 24 * 3600
MIN_ATTESTATION_AGE_S, MAX_ATTESTATION_AGE_S = 1, 7 * 24 * 3600


def decode_pins(answer: bytes) -> Pins:
    """`placetPins()` of a policy client, within the bounds that the validator holds them to.

    Raises:
        VerificationFailed: it is no policy client, or one whose attestations the validator refuses.
    """
    if len(answer) != 160:
        raise VerificationFailed("the policy client does not answer placetPins(): is it a PolicyClient?", field="policyClient")
    ordering, quorum_bps, grace, age = (int.from_bytes(answer[at : at + 32], "big") for at in range(32, 160, 32))
    if ordering > max(Ordering) or not 1 <= quorum_bps <= 10_000:
        raise VerificationFailed("the policy client's ordering or quorum is out of bounds", field="policyClient")
    if grace > MAX_GRACE_S or not MIN_ATTESTATION_AGE_S <= age <= MAX_ATTESTATION_AGE_S:
        raise VerificationFailed("the policy client's grace or maximal age is out of bounds", field="policyClient")
    return Pins(Hash32(answer[:32]), Ordering(ordering), quorum_bps, grace, age)


def decode_operators(answer: bytes, commitment: bytes, epoch: int) -> OperatorSet:
    """`operatorsAt(epoch)`, held against `setAt(epoch)`: keys sum to the set's key, stakes to its total. Every key is checked to be a
    point of the right group and to have the id it is listed under.

    Raises:
        VerificationFailed: it does not hold together.
    """
    if len(answer) > 64 + 32 * 8 * (MAX_OPERATORS_ANSWER + 1):
        raise VerificationFailed(f"the registry lists more than {MAX_OPERATORS_ANSWER} operators", field="operators")
    (views,) = abi.decode([f"{OPERATOR_VIEW}[]"], answer)
    operators = []
    for address, identity, key, bus_key, stake in views:
        encoded = b"".join(key)
        if key_id_of(encoded) != identity:
            raise VerificationFailed("the registry lists a key under a wrong id", field="operators")
        operators.append(Operator(Address(bytes.fromhex(address[2:])), Hash32(identity), bls.decode_g1(encoded), bus_key, stake))
    if len(commitment) < 160:
        raise VerificationFailed("the registry does not answer setAt()", field="operators")
    apk, total = commitment[:128], int.from_bytes(commitment[128:160], "big")
    vacant = total - sum(operator.stake for operator in operators)
    if vacant < 0 or (operators and bls.encode_g1(bls.aggregate_keys([operator.bls_key for operator in operators])) != apk):
        raise VerificationFailed("the registry's operators do not make the set it commits to", field="operators")
    return OperatorSet(epoch, tuple(operators), vacant)


# --- writes


def intent_tuple(intent: Intent) -> tuple[Any, ...]:
    """Solidity's Intent."""
    return (
        intent.sender,
        intent.to,
        intent.value,
        intent.data,
        intent.chain_id,
        intent.function_signature,
        intent.nonce,
        intent.deadline,
    )


def leaf_tuple(leaf: Leaf) -> tuple[Any, ...]:
    """Solidity's Leaf."""
    return (
        leaf.task_id,
        leaf.policy_client,
        leaf.policy_id,
        leaf.intent_hash,
        leaf.sequence,
        leaf.allow,
        leaf.output,
        leaf.evidence,
        leaf.expiration,
    )


def certificate_tuple(certificate: Certificate) -> tuple[Any, ...]:
    """Solidity's Certificate."""
    return (certificate.root, certificate.count, certificate.epoch, certificate.timestamp)


def quorum_proof(operators: OperatorSet, signers: frozenset[int], aggregate_signature: bytes) -> bytes:
    """abi.encode(QuorumProof): the set's aggregate key and stake, the signature, and who did not sign (ascending by key id)."""
    apk = bls.encode_g1(bls.aggregate_keys([operator.bls_key for operator in operators.operators]))
    missing = [words(bls.encode_g1(operator.bls_key)) for position, operator in enumerate(operators.operators) if position not in signers]
    value = (words(apk), operators.total_stake, words(bls.encode_g2(aggregate_signature)), missing)
    return abi.encode([QUORUM_PROOF], [value])


def attestation_tuple(
    leaf: Leaf, index: int, proof: Sequence[bytes], certificate: Certificate, *, remember: bool, quorum: bytes
) -> tuple[Any, ...]:
    """Solidity's Attestation. With empty `quorum` the contract uses what it remembers of the certificate."""
    return (leaf_tuple(leaf), index, list(proof), certificate_tuple(certificate), remember, quorum)


def execute_intent_call(intent: Intent, sender_signature: bytes, attestation: tuple[Any, ...]) -> bytes:
    """PolicyClient.executeIntent."""
    return encode_call(f"executeIntent({INTENT},bytes,{ATTESTATION})", intent_tuple(intent), sender_signature, attestation)


def record_call(certificate: Certificate, quorum: bytes) -> bytes:
    """AttestationValidator.record: remember a certificate."""
    (proof,) = abi.decode([QUORUM_PROOF], quorum)
    return encode_call(f"record({CERTIFICATE},{QUORUM_PROOF})", certificate_tuple(certificate), proof)


def publish_policy_call(policy: Policy, uri: str) -> bytes:
    """PolicyRegistry.publish."""
    return encode_call(f"publish({PREIMAGE},string)", tuple(policy_preimage(policy).values()), uri)
