"""Mode audited: several replicas run one request, alone, inside one execution profile, and their answers are held against each other.

The gateway chooses them by chance, so a node cannot know whether it is watched by one that agrees with it. What they signed goes to the
caller, who needs not believe the gateway (placet.verify.audit).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import orjson

from placet.core.errors import AuditFailed, ModeUnavailable
from placet.core.gen import inference_pb2 as pb
from placet.core.receipts import Receipt, decode
from placet.core.types import hex0x
from placet.gateway.inference.replicas import Replica
from placet.gateway.inference.routing import Choice


def draw(choices: Sequence[Choice], replicas: Sequence[Replica], sha256: bytes, count: int) -> list[Choice]:
    """`count` of the choices, by chance, of one profile and of nodes that sign with different keys. Replicas that have not loaded the model
    may turn out to be of any profile, and are asked where those of one are too few.

    Raises:
        ModeUnavailable: there are not so many.
    """
    by_profile: dict[bytes, dict[bytes, Choice]] = {}
    unknown: dict[bytes, Choice] = {}
    for choice in choices:
        replica = replicas[choice.index]
        assert replica.said is not None
        loaded = next((model for digest, model in replica.models.items() if digest == sha256), None)
        group = unknown if loaded is None else by_profile.setdefault(loaded.profile, {})
        group.setdefault(replica.said.key_id, choice)
    largest = max(by_profile.values(), key=len, default={})
    candidates = list(largest.values())
    if len(candidates) < count:
        candidates += [choice for key, choice in unknown.items() if key not in largest]
        candidates = candidates[:count]
    if len(candidates) < count:
        raise ModeUnavailable(f"{count} nodes of one execution profile are wanted, {len(candidates)} are there", field="placet/auditors")
    return secrets.SystemRandom().sample(candidates, count)


def compare(answers: Sequence[pb.Finished]) -> list[Receipt]:
    """The receipts of answers that agree.

    Raises:
        AuditFailed: they do not; names what each node said.
    """
    receipts = [decode(answer.receipt) for answer in answers]
    profiles = {receipt.execution.profile for receipt in receipts}
    if len(profiles) != 1 or None in profiles:
        raise AuditFailed("the nodes ran it in different execution profiles, in which answers may differ honestly; ask again")
    if len({_content(answer) for answer in answers}) != 1:
        said = [{"keyId": hex0x(receipt.key_id), "responseSha256": hex0x(receipt.response_sha256)} for receipt in receipts]
        raise AuditFailed("the nodes do not agree on the answer; nothing is delivered", nodes=said)
    return receipts


def _content(answer: pb.Finished) -> bytes:
    """What must be equal: tensors bit for bit, and of a document everything but its own id and time."""
    document = orjson.loads(answer.body) if answer.body else {}
    for member in ("id", "created"):
        document.pop(member, None)
    tensors = [[tensor.name, tensor.datatype, list(tensor.shape), tensor.data.hex()] for tensor in answer.tensors]
    return orjson.dumps([document, tensors], option=orjson.OPT_SORT_KEYS)
