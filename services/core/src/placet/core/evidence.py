"""The evidence record: what a decision rests on, committed to part by part with salted digests, so each part can be shown or withheld.

Every part is a pure function of TaskBatch, Proposal and policy; what one operator did (transcripts, versions) stands in its signed
messages, which the `observations` part names by digest (threats 17, 26).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from placet.core.digests import EVIDENCE_PARTS, evidence_hash, evidence_part_hash, part_salt
from placet.core.errors import VerificationFailed
from placet.core.jsonx import canonical
from placet.core.keccak import keccak256
from placet.core.types import Address, Attachment, Hash32, Intent, hex0x


@dataclass(frozen=True, slots=True)
class EvidenceRecord:
    """The six parts' contents and the task's salt."""

    salt: Hash32
    parts: Mapping[str, bytes]

    def part_hashes(self) -> dict[str, Hash32]:
        """hashStruct(EvidencePart) of every part."""
        return {name: evidence_part_hash(name, part_salt(self.salt, name), self.parts[name]) for name in EVIDENCE_PARTS}

    def digest(self) -> Hash32:
        """The leaf's `evidence`."""
        return evidence_hash(self.part_hashes())


def intent_content(intent: Intent, policy_client: Address) -> bytes:
    """The `intent` part: canonical JSON."""
    return canonical(
        {
            "policyClient": hex0x(policy_client),
            "from": hex0x(intent.sender),
            "to": hex0x(intent.to),
            "value": str(intent.value),
            "data": hex0x(intent.data),
            "chainId": intent.chain_id,
            "functionSignature": intent.function_signature,
            "nonce": str(intent.nonce),
            "deadline": intent.deadline,
        }
    )


def arguments_content(args: bytes, attachments: Iterable[Attachment]) -> bytes:
    """The `arguments` part: canonical JSON; the caller's argument text exactly as sent."""
    return canonical(
        {
            "args": args.decode("utf-8", "replace"),
            "attachments": [{"kind": a.kind, "sha256": hex0x(a.sha256), "uri": a.uri} for a in attachments],
        }
    )


def observations_content(envelopes: Iterable[bytes]) -> bytes:
    """The `observations` part: sorted keccak digests of the observations' envelopes, joined."""
    return b"".join(sorted(keccak256(envelope) for envelope in envelopes))


def check_part(name: str, content: bytes, salt: Hash32, part_hashes: Mapping[str, Hash32], evidence: Hash32) -> None:
    """Check that `content` is the part `name` of the record behind a leaf's `evidence`.

    Raises:
        VerificationFailed: it is not.
    """
    if evidence_part_hash(name, part_salt(salt, name), content) != part_hashes[name]:
        raise VerificationFailed(f"evidence: the part {name!r} is not what was committed to", field=name)
    if evidence_hash(dict(part_hashes)) != evidence:
        raise VerificationFailed("evidence: the parts do not make the leaf's digest", field="evidence")
