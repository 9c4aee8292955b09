"""What happens to an intent: early checks (operators repeat all of them), idempotency, batching, waiting. No HTTP here."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from placet.core import calls
from placet.core.digests import args_hash, intent_hash
from placet.core.errors import (
    DeadlineExceeded,
    Forbidden,
    IdempotencyConflict,
    InvalidInput,
    NoQuorum,
    NotFound,
    PlacetError,
    PolicyNotAdmitted,
    Unavailable,
    VerificationFailed,
    WrongPolicy,
)
from placet.core.evm import contracts
from placet.core.evm.reader import BlockState, ChainReader
from placet.core.intents import intent_json
from placet.core.keccak import keccak256
from placet.core.senders import is_signed_by
from placet.core.types import UINT256_MAX, Address, Hash32, Intent, Ordering, Pins, Task, hex0x
from placet.gateway.batcher import Asked, Batcher, TakenElsewhere, new_salt
from placet.gateway.policybook import PolicyBook
from placet.gateway.requests import IntentRequest
from placet.gateway.results import Results
from placet.gateway.store import ApiKey, Store, TaskRow

_STATE_S = 0.2
_HANDED_OUT_S = 600
_HANDED_OUT_PLACES = 4_096
_MAX_NONCE_WORDS = 4
_NONCE_WORD_BITS = 64
_MAX_RACES = 3
_OTHERS_S = 0.1
"""How often the database is asked for the result of a task that another replica follows."""
DEFAULT_DEADLINE_S = 600


@dataclass(slots=True)
class _HandedOut:
    """The word of nonces that a tenant is given for one sender, and which of its bits were given out already."""

    at: float
    word: int = 0
    bits: int = 0


@dataclass(frozen=True, slots=True)
class _Found:
    """A request's task: an earlier one, or the one it was made into. `here`: this replica follows its batch."""

    task_id: Hash32
    stage: str
    answer: dict[str, Any] | None
    here: bool = True


@dataclass(frozen=True, slots=True)
class Accepted:
    """A task that has been submitted, and its answer when there is one."""

    task_id: Hash32
    stage: str
    answer: dict[str, Any] | None


class Intents:
    """The gateway's main job."""

    def __init__(
        self,
        *,
        chains: Mapping[int, ChainReader],
        store: Store,
        policies: PolicyBook,
        batcher: Batcher,
        results: Results,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._chains = chains
        self._store = store
        self._policies = policies
        self._batcher = batcher
        self._results = results
        self._clock = clock
        self._states: dict[tuple[int, Address], tuple[float, BlockState]] = {}
        self._handed_out: dict[str, OrderedDict[tuple[int, Address, Address], _HandedOut]] = {}
        self._in_hand: dict[Hash32, tuple[Hash32, asyncio.Task[_Found]]] = {}

    async def state_of(self, chain_id: int, client: Address) -> tuple[BlockState, Pins]:
        """The client's pins now (at most 200 ms old).

        Raises:
            InvalidInput: the chain is not served. WrongPolicy: the address is no policy client.
        """
        reader = self._chains.get(chain_id)
        if reader is None:
            raise InvalidInput(f"chain {chain_id} is not served here: {sorted(self._chains)}", field="/intent/chainId")
        now = asyncio.get_running_loop().time()
        cached = self._states.get((chain_id, client))
        if cached is None or now - cached[0] > _STATE_S:
            block = await reader.latest_block()
            cached = (now, await reader.at(block.hash, clients=[client]))
            if len(self._states) > 4096:
                self._states.clear()
            self._states[(chain_id, client)] = cached
        pins = cached[1].pins.get(client)
        if pins is None:
            raise WrongPolicy(f"{hex0x(client)} is no policy client on chain {chain_id}", field="/policyClient")
        return cached[1], pins

    def validator_of(self, chain_id: int) -> Address:
        """The validator of a chain served here."""
        return self._chains[chain_id].deployment.validator

    async def sequence_of(self, chain_id: int, client: Address, sender: Address, ordering: Ordering) -> int:
        """The counter that an attestation would be bound to now."""
        reader = self._chains[chain_id]
        data = contracts.sequence_of_call(client, sender, ordering)
        return contracts.decode_uint(await reader.rpc.eth_call(reader.deployment.validator, data))

    # --- prepare

    async def prepare(self, chain_id: int, client: Address, call: Mapping[str, Any], key: ApiKey) -> dict[str, Any]:
        """EIP-712 typed data for a call, with an unused nonce and a default deadline.

        `call` has sender, to, value, data, function_signature.
        """
        self.check_client(key, client)
        _, pins = await self.state_of(chain_id, client)
        nonce = await self._unused_nonce(chain_id, client, call["sender"], key.id)
        intent = Intent(
            sender=call["sender"],
            to=call["to"],
            value=call["value"],
            data=call["data"],
            chain_id=chain_id,
            function_signature=call["function_signature"],
            nonce=nonce,
            deadline=int(self._clock()) + DEFAULT_DEADLINE_S,
        )
        try:
            bundle = await self._policies.bundle(pins.policy_id)
            calls.decode_intent(intent, client, bundle.policy.calls)
            governed: str | None = None
        except calls.NotGoverned as error:
            governed = str(error)
        except NotFound:
            governed = "the client's policy is not known here"
        return {
            "policyClient": hex0x(client),
            "policyId": hex0x(pins.policy_id),
            "intent": intent_json(intent),
            "intentHash": hex0x(intent_hash(intent, client)),
            "typedData": typed_data(intent, client),
            **({"warning": governed} if governed else {}),
        }

    async def _unused_nonce(self, chain_id: int, client: Address, sender: Address, tenant: str) -> int:
        """A nonce that is not spent and that this tenant was not given lately. Bits of one word share a storage slot, so a word is used up
        before another is begun; after the first, words are chosen at random. What other tenants ask for takes none away."""
        now = self._clock()
        places = self._handed_out.setdefault(tenant, OrderedDict())
        given = places.setdefault((chain_id, client, sender), _HandedOut(now))
        given.at = now
        places.move_to_end((chain_id, client, sender))
        while len(places) > _HANDED_OUT_PLACES or next(iter(places.values())).at < now - _HANDED_OUT_S:
            places.popitem(last=False)
        reader = self._chains[chain_id]
        for _ in range(_MAX_NONCE_WORDS):
            word = given.word
            answer = await reader.rpc.eth_call(reader.deployment.validator, contracts.nonce_bitmap_call(client, sender, word))
            if word != given.word:
                continue  # another call of the same tenant has just begun a new word
            free = ~(contracts.decode_uint(answer) | given.bits) & UINT256_MAX
            if free:
                lowest = free & -free
                given.bits |= lowest
                return 256 * word + lowest.bit_length() - 1
            given.word, given.bits = secrets.randbits(_NONCE_WORD_BITS), 0
        raise Unavailable("no unused nonce was found; choose one yourself")

    # --- submit

    @staticmethod
    def check_client(key: ApiKey, client: Address) -> None:
        """Refuse a client that the key may not ask for. Raises Forbidden."""
        if key.clients and client not in key.clients:
            raise Forbidden("this API key may not ask for that policy client", field="/policyClient")

    async def submit(self, request: IntentRequest, key: ApiKey, idempotency_key: str | None, wait_s: float) -> Accepted:
        """Check, deduplicate, batch, and wait up to `wait_s` for the result.

        Raises:
            PlacetError: see docs/errors.md; NoQuorum and DeadlineExceeded name the task.
        """
        self.check_client(key, request.policy_client)
        state, pins = await self.state_of(request.intent.chain_id, request.policy_client)
        request_key, request_hash = _request_keys(request, key, pins.policy_id, idempotency_key)
        # Claimed before anything is waited for: of two equal requests at once, one sends and both get its answer.
        in_hand = self._in_hand.get(request_key)
        if in_hand is not None and in_hand[0] != request_hash:
            raise _conflict()
        if in_hand is None:
            identity = request_key, request_hash
            finding = asyncio.create_task(self._find_or_send(request, key, state, pins, identity, idempotency_key is not None))
            finding.add_done_callback(lambda task: self._let_go(request_key, task))
            in_hand = self._in_hand[request_key] = (request_hash, finding)
        found = await asyncio.shield(in_hand[1])  # the task of all who ask: one that hangs up does not end it
        return await self._answer_of(found, wait_s)

    def _let_go(self, request_key: Hash32, task: asyncio.Task[_Found]) -> None:
        self._in_hand.pop(request_key, None)
        if not task.cancelled():
            task.exception()  # whoever waits gets it; perhaps nobody does any more

    async def _find_or_send(
        self, request: IntentRequest, key: ApiKey, state: BlockState, pins: Pins, identity: tuple[Hash32, Hash32], named: bool
    ) -> _Found:
        request_key, request_hash = identity
        for _ in range(_MAX_RACES):
            now = int(self._clock())
            task_row, attempts = await self._store.standing_of(request_key, now) or (None, 0)
            if task_row is not None and named and task_row.request_hash != request_hash:
                raise _conflict()
            if task_row is not None and task_row.stage != "failed" and task_row.expires_at > now:
                return _Found(task_row.task_id, task_row.stage, task_row.result, self._results.is_open(task_row.batch_id))
            await self._early_checks(request, state, pins)
            task = Task(request.policy_client, request.intent, new_salt(), request.signature, request.args, request.attachments)
            asked = Asked(
                chain_id=request.intent.chain_id,
                policy_id=pins.policy_id,
                task=task,
                tenant=key.id,
                request_key=request_key,
                request_hash=request_hash,
                attempt=attempts + 1,
                relay=request.relay,
                submitted=asyncio.get_running_loop().create_future(),
            )
            try:
                return _Found((await self._batcher.submit(asked)).task_id, "submitted", None)
            except TakenElsewhere:
                continue  # another replica was asked the same at the same time; its task is this request's
        raise Unavailable("other replicas were asked the same at the same time; ask again")

    async def _answer_of(self, found: _Found, wait_s: float) -> Accepted:
        task_id, answer = found.task_id, found.answer
        if answer is None and wait_s > 0:
            waiter = self._results.waiter(task_id)
            try:
                async with asyncio.timeout(wait_s):
                    answer = await self._stored_answer(task_id)  # it may have come before the waiter stood
                    while answer is None and not found.here:  # another replica writes it down
                        await asyncio.wait([waiter], timeout=_OTHERS_S)
                        answer = waiter.result() if waiter.done() else await self._stored_answer(task_id)
                    answer = await asyncio.shield(waiter) if answer is None else answer
            except TimeoutError:
                message = "no result in time; ask for the task again"
                raise DeadlineExceeded(message, taskId=hex0x(task_id)) from None
            finally:
                self._results.forget(task_id, waiter)
        if answer is None:
            return Accepted(task_id, found.stage, None)
        raise_failure(answer)
        return Accepted(task_id, "certified", answer)

    async def _stored_answer(self, task_id: Hash32) -> dict[str, Any] | None:
        row = await self._store.task_any(task_id)
        return None if row is None else row.result

    async def _early_checks(self, request: IntentRequest, state: BlockState, pins: Pins) -> None:
        """Refuse at once what operators would deny or abstain from."""
        intent, now = request.intent, int(self._clock())
        if intent.deadline < now:
            raise InvalidInput("the intent's deadline has passed", field="/intent/deadline")
        try:
            bundle = await self._policies.bundle(pins.policy_id)
        except NotFound:
            raise PolicyNotAdmitted("the client's policy is not known to any operator here", policyId=hex0x(pins.policy_id)) from None
        if not self._policies.is_admitted(pins.policy_id, state.operators, pins.quorum_bps):
            said = self._policies.admissions(pins.policy_id, state.operators)
            reasons = [{"operator": hex0x(a), "reason": admission.reason} for a, admission in said.items() if not admission.admitted]
            raise PolicyNotAdmitted(
                "operators with quorum stake have not admitted the client's policy",
                policyId=hex0x(pins.policy_id),
                retryable=not reasons,
                operators=reasons,
            )
        if bundle.policy.ordering != pins.ordering:
            raise VerificationFailed("the client's ordering is not its policy's", field="/policyClient")
        function = calls.parse_signature(intent.function_signature)
        if intent.data[:4] != function.selector:
            raise InvalidInput("the calldata's selector is not that of functionSignature", field="/intent/data")
        if request.signature:
            digest = intent_hash(intent, request.policy_client)
            rpc = self._chains[intent.chain_id].rpc
            if not await is_signed_by(rpc, intent.sender, digest, request.signature, block_hash=state.block.hash):
                raise InvalidInput("the signature is not by intent.from over this intent for this client", field="/signature")

    # --- read

    async def task(self, task_id: Hash32, key: ApiKey) -> TaskRow:
        """A tenant's task. Raises NotFound."""
        row = await self._store.task(task_id, key.id)
        if row is None:
            raise NotFound("no such task", taskId=hex0x(task_id))
        return row


def _conflict() -> IdempotencyConflict:
    return IdempotencyConflict("this Idempotency-Key was used with another request", field="Idempotency-Key")


def raise_failure(answer: Mapping[str, Any]) -> None:
    """Turn a stored failure into its error; a decision passes."""
    if "error" not in answer:
        return
    kind: type[PlacetError] = DeadlineExceeded if answer["error"] == "timeout" else NoQuorum
    raise kind(answer["message"], taskId=answer["taskId"], operators=answer["operators"])


def _request_keys(request: IntentRequest, key: ApiKey, policy_id: Hash32, idempotency_key: str | None) -> tuple[Hash32, Hash32]:
    """What identifies a request of a tenant, and a hash of all of it (threats 25)."""
    digest = intent_hash(request.intent, request.policy_client)
    arguments = args_hash(request.args, request.attachments)
    relay = b"relay" if request.relay else b"none"
    whole = Hash32(keccak256(request.policy_client + digest + arguments + keccak256(request.signature) + relay))
    tenant = keccak256(key.id.encode())
    if idempotency_key is not None:  # which policy stands is not part of what the client sent: a repeated request has its answer
        return Hash32(keccak256(b"named" + tenant + keccak256(idempotency_key.encode()))), whole
    return Hash32(keccak256(b"content" + tenant + policy_id + whole)), whole


def typed_data(intent: Intent, client: Address) -> dict[str, Any]:
    """EIP-712 typed data, as wallets take it (`eth_signTypedData_v4`)."""
    return {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "Intent": [
                {"name": "from", "type": "address"},
                {"name": "to", "type": "address"},
                {"name": "value", "type": "uint256"},
                {"name": "data", "type": "bytes"},
                {"name": "chainId", "type": "uint256"},
                {"name": "functionSignature", "type": "string"},
                {"name": "nonce", "type": "uint256"},
                {"name": "deadline", "type": "uint64"},
            ],
        },
        "primaryType": "Intent",
        "domain": {"name": "Placet Intent", "version": "1", "chainId": intent.chain_id, "verifyingContract": hex0x(client)},
        "message": {
            "from": hex0x(intent.sender),
            "to": hex0x(intent.to),
            "value": str(intent.value),
            "data": hex0x(intent.data),
            "chainId": str(intent.chain_id),
            "functionSignature": intent.function_signature,
            "nonce": str(intent.nonce),
            "deadline": str(intent.deadline),
        },
    }
