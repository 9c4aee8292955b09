"""Opening what a Proposal lists. Shared by operators (who rest on it) and the aggregator (who must not publish what nobody can use)."""

from __future__ import annotations

from collections.abc import Sequence

from placet.core import limits, wire
from placet.core.batch import BatchContext
from placet.core.envelope import Kind, open_envelope
from placet.core.errors import VerificationFailed
from placet.core.messages import Observation, TaskObservation
from placet.core.objects import ObjectStore
from placet.core.types import ZERO_HASH, Address, OperatorSet


async def open_observations(
    envelopes: Sequence[bytes], context: BatchContext, operators: OperatorSet, objects: ObjectStore, *, with_data: bool
) -> dict[Address, Observation]:
    """Open the signed messages a Proposal lists: at most one an operator, each of this batch and signed by its operator's bus key.

    In a batch without PolicyData a Response to the whole batch counts as an Observation that vouches for every task.

    Raises:
        InvalidInput, VerificationFailed: any of them does not hold; then the Proposal is not valid.
    """

    def key_of(kind: Kind, sender: bytes) -> bytes | None:
        operator = operators.by_address(Address(sender))
        allowed = (Kind.OBSERVATION,) if with_data else (Kind.OBSERVATION, Kind.RESPONSE)
        return operator.bus_key if operator is not None and kind in allowed else None

    size = len(context.batch.tasks)
    out: dict[Address, Observation] = {}
    for envelope in envelopes:
        message = open_envelope(envelope, key_of)
        sender = Address(message.sender)
        if message.batch_id != context.id or message.chain_id != context.batch.chain_id or message.proposal_digest != ZERO_HASH:
            raise VerificationFailed("an observation belongs to another batch", field="observations")
        if sender in out:
            raise VerificationFailed("an operator is listed twice", field="observations")
        if message.kind is Kind.RESPONSE:
            response = wire.decode_response(message.payload, size)
            if [len(group.decided) for group in response.groups] != [size]:
                raise VerificationFailed("a listed response is not one to the whole batch", field="observations")
            out[sender] = Observation(tuple(TaskObservation(i, (), ()) for i in range(size)), (), response.runtime_id)
            continue
        observation = wire.decode_observation(message.payload, size)
        if observation.blob_sha256 is not None:
            blob = await objects.get(observation.blob_sha256, max_bytes=limits.MAX_OBSERVATION_BLOB_BYTES)
            observation = wire.decode_observation(blob, size)
        out[sender] = observation
    return out
