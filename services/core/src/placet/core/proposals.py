"""Opening what a Proposal lists. Shared by operators (who rest on it) and the aggregator (who lists only what holds here)."""

from __future__ import annotations

from placet.core import limits, wire
from placet.core.batch import BatchContext
from placet.core.envelope import MAX_ENVELOPE_BYTES, Kind, Message, open_envelope
from placet.core.errors import InvalidInput, TooLarge, Unavailable, VerificationFailed
from placet.core.messages import Observation, Proposal, TaskObservation
from placet.core.objects import ObjectStore
from placet.core.types import ZERO_HASH, Address, Hash32, OperatorSet

_DOES_NOT_HOLD = (InvalidInput, VerificationFailed)


def check_listable(message: Message, context: BatchContext, *, with_data: bool) -> Observation:
    """What a signed message says, if a Proposal may rest on it: an Observation; in a batch without PolicyData also a Response to the whole
    batch, which vouches for every task. An Observation with a `blob_sha256` still has to be fetched.

    Raises:
        InvalidInput, VerificationFailed: it does not hold.
    """
    if message.batch_id != context.id or message.chain_id != context.batch.chain_id:
        raise VerificationFailed("the message belongs to another batch", field="batchId")
    if message.proposal_digest != ZERO_HASH:
        raise VerificationFailed("an observation names a proposal", field="proposalDigest")
    size = len(context.batch.tasks)
    if message.kind is Kind.RESPONSE and not with_data:
        response = wire.decode_response(message.payload, size)
        if [len(group.decided) for group in response.groups] != [size]:
            raise VerificationFailed("the response is not one to the whole batch", field="response")
        return Observation(tuple(TaskObservation(i, (), ()) for i in range(size)), (), response.runtime_id)
    if message.kind is not Kind.OBSERVATION:
        raise VerificationFailed("not an observation", field="kind")
    if len(message.payload) > limits.MAX_INLINE_OBSERVATION_BYTES:
        raise InvalidInput(f"observation: more than {limits.MAX_INLINE_OBSERVATION_BYTES} bytes travel by content address", field="payload")
    return wire.decode_observation(message.payload, size)


async def fetch_observation(observation: Observation, task_count: int, objects: ObjectStore) -> Observation:
    """The observation itself, where the message holds its content address only.

    Raises:
        InvalidInput: what has this address is none, for everybody.
        NotFound, Unavailable: it could not be fetched, here and now.
    """
    if observation.blob_sha256 is None:
        return observation
    return wire.decode_observation(await _fetch(objects, observation.blob_sha256, limits.MAX_OBSERVATION_BLOB_BYTES), task_count)


async def _fetch(objects: ObjectStore, digest: Hash32, max_bytes: int) -> bytes:
    """What has this address. What lies there instead (who may write the store may overwrite) says nothing of it: it is not known here.

    Raises:
        NotFound, Unavailable: it could not be fetched, here and now.
    """
    try:
        return await objects.get(digest, max_bytes=max_bytes)
    except (TooLarge, VerificationFailed) as error:
        raise Unavailable(f"the object store does not have it: {error.message}", field="sha256") from None


async def open_observations(
    proposal: Proposal, context: BatchContext, operators: OperatorSet, objects: ObjectStore, *, with_data: bool
) -> tuple[dict[Address, Observation], tuple[bytes, ...]]:
    """The observations a Proposal rests on, and their envelopes: the first of each operator that holds. What does not hold counts as not
    listed, so that no operator can spoil a Proposal for the others.

    Raises:
        NotFound, Unavailable: something listed could not be fetched; what the Proposal rests on is not known here.
    """

    def key_of(kind: Kind, sender: bytes) -> bytes | None:
        operator = operators.by_address(Address(sender))
        return operator.bus_key if operator is not None and kind in (Kind.OBSERVATION, Kind.RESPONSE) else None

    size = len(context.batch.tasks)
    envelopes = list(proposal.observations)
    for digest in proposal.observation_sha256:
        envelopes.append(await _fetch(objects, digest, MAX_ENVELOPE_BYTES))
    out: dict[Address, Observation] = {}
    raw: list[bytes] = []
    for envelope in envelopes:
        try:
            message = open_envelope(envelope, key_of)
            if Address(message.sender) in out:
                continue
            observation = await fetch_observation(check_listable(message, context, with_data=with_data), size, objects)
        except _DOES_NOT_HOLD:
            continue
        out[Address(message.sender)] = observation
        raw.append(envelope)
    return out, tuple(raw)
