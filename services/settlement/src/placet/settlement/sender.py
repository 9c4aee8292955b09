"""The leader's loop for one key on one chain: bind jobs to account nonces, send, replace, cancel, confirm.

Order that makes it safe to die at any point: look (dry run), sign, write down, send. Whatever was written down is sent again after a
restart; whatever was not written down was never sent.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from placet.core.bus.tracing import restore
from placet.core.db import DATABASE_ERRORS
from placet.core.errors import PlacetError, Unavailable
from placet.core.evm.reverts import name_of_revert
from placet.core.evm.rpc import Block, RpcClient, RpcError, call_request
from placet.core.telemetry import metrics, names
from placet.core.telemetry.scope import tracer
from placet.core.types import Address, hex0x
from placet.settlement.signer import TransactionSigner
from placet.settlement.store import ATTESTATIONS, DAY_S, Attempt, Job, Lease, LeaseLost, Store, attempts_of, cannot_be_held

log = logging.getLogger(__name__)

_JOBS = metrics.counter("placet_settlement_jobs_total", "Jobs that ended, by state.", ["state"])
_FAILED = metrics.counter("placet_settlement_failed_steps_total", "Jobs and account nonces passed over in a round.", ["chain"])
_GAS = metrics.counter("placet_settlement_gas_total", "Gas used.", ["chain"])
_LEFT = metrics.gauge("placet_settlement_account_wei", "What an account has left to pay gas with.", ["chain", "account"])
_WATCH_S = 30.0
_GWEI = 10**9
_BUMP_PERCENT = 125  # nodes want at least 10 % more of a replacement
_PLAIN_GAS = 21_000
_ROUND_S = 5.0
"""No job is begun later than this in a round: what is in flight is looked after in between."""


@dataclass(frozen=True, slots=True)
class SendingRules:
    """Bounds of what is sent. Fees in wei. `patient`: what cannot be sent now waits while it is valid, in place of being refused.
    `repeats`: what was mined and reverted is tried again."""

    confirmations: int
    bump_after_s: float
    max_fee: int
    tip: int
    gas_ceiling: int
    gas_per_payer_per_day: int
    max_in_flight: int
    lane: str = ATTESTATIONS
    patient: bool = False
    repeats: bool = False
    gas_per_day: int | None = None
    """Of all payers together."""


class Sender:
    """One key on one chain. `step` is called again and again by whoever holds the lease."""

    def __init__(
        self,
        *,
        rpc: RpcClient,
        chain_id: int,
        signer: TransactionSigner,
        store: Store,
        rules: SendingRules,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rpc = rpc
        self._chain_id = chain_id
        self._signer = signer
        self._store = store
        self._rules = rules
        self._clock = clock
        self._gas_of_all: int | None = None
        """Read once a round, and added to: a sum over a day's jobs for each job would be slow."""
        self._watched_at = -_WATCH_S

    @property
    def address(self) -> Address:
        """The account that sends."""
        return self._signer.address

    async def step(self, lease: Lease) -> None:
        """One round. What goes wrong with one job or account nonce is its own: it is put off, and the others have their turn.

        Raises:
            LeaseLost: another leads by now.
            Unavailable: no node answers; then nothing is put off, for it is no job's fault.
        """
        self._gas_of_all = None
        head = await self._rpc.block("latest")
        await self._watch_account()
        await self._restore_what_was_taken_back(lease)
        open_attempts = await self._store.open_attempts(lease)
        for nonce in sorted(open_attempts):
            await self._apart(f"nonce {nonce}", self._look_after(lease, head, nonce, open_attempts[nonce]))
        room = self._rules.max_in_flight - len(open_attempts)
        began = time.monotonic()
        for job in await self._store.queued(self._chain_id, room, self._clock(), self._rules.lane) if room > 0 else ():
            if time.monotonic() > began + _ROUND_S:
                return
            if not await self._apart(f"job {hex0x(job.reference)}", self._begin(lease, head, job)):
                await self._put_off(lease, job)

    async def _watch_account(self) -> None:
        """Show what is left for gas: an account that runs dry sends nothing, and payments end meanwhile."""
        if time.monotonic() < self._watched_at + _WATCH_S:
            return
        left = int(await self._rpc.call("eth_getBalance", [hex0x(self.address), "latest"]), 16)
        _LEFT.labels(str(self._chain_id), hex0x(self.address)).set(left)
        self._watched_at = time.monotonic()

    async def _apart(self, what: str, work: Awaitable[None]) -> bool:
        """Do one thing of many; False when it failed, and node and database are well. Raises LeaseLost, or what they raise."""
        try:
            await work
        except LeaseLost:
            raise
        except Exception as error:
            if isinstance(error, DATABASE_ERRORS) and not cannot_be_held(error):
                raise  # the database is away: nothing could be written down of the others either
            known = isinstance(error, (PlacetError, RpcError, *DATABASE_ERRORS))
            log.warning("%s: %s", what, error, exc_info=None if known else error)
            _FAILED.labels(str(self._chain_id)).inc()
            await self._rpc.block("latest")
            return False
        return True

    async def _put_off(self, lease: Lease, job: Job, error: str = "") -> None:
        until = await self._store.put_off(lease, self._clock(), job, error)
        log.info("job %s waits %.0f s", hex0x(job.reference), until - self._clock())

    async def _restore_what_was_taken_back(self, lease: Lease) -> None:
        """A reorganisation deeper than the confirmations takes back what was final. The same bytes go again; nothing after them would be
        mined before."""
        for attempts in (await self._store.final_attempts(lease, await self._chain_nonce())).values():
            log.warning("nonce %d was final and is not in the chain: sent again", attempts[-1].nonce)
            await self._broadcast(attempts[-1])

    # --- new jobs

    async def _begin(self, lease: Lease, head: Block, job: Job) -> None:
        now = self._clock()
        refusal = self._why_not(job, now, head)
        if refusal is not None:
            await self._refuse(lease, job, refusal, for_ever=True)
            return
        gas = await self._gas_for(lease, job)
        if gas is None:
            return
        if await self._store.gas_of_payer(job.payer, now - DAY_S, self._rules.lane) + gas > self._rules.gas_per_payer_per_day:
            await self._refuse(lease, job, "the payer's gas budget for today is used up")
            return
        if self._rules.gas_per_day is not None:
            if self._gas_of_all is None:
                self._gas_of_all = await self._store.gas_of_payer(None, now - DAY_S, self._rules.lane)
            if self._gas_of_all + gas > self._rules.gas_per_day:
                await self._refuse(lease, job, "the key's gas budget for today is used up")
                return
            self._gas_of_all += gas
        nonce = await self._store.next_nonce(lease, await self._chain_nonce())
        attempt = self._sign(job, nonce, 0, gas, self._fee(head))
        await self._store.bind(lease, self._clock(), job.reference, attempt, gas)
        await self._broadcast(attempt, job)

    @staticmethod
    def _why_not(job: Job, now: float, head: Block) -> str | None:
        if job.valid_until < max(now, head.timestamp):
            return "expired before it could be sent"
        return None

    async def _refuse(self, lease: Lease, job: Job, error: str, *, for_ever: bool = False) -> None:
        if self._rules.patient and not for_ever:
            await self._put_off(lease, job, error)
            return
        await self._store.set_state(lease, self._clock(), job.reference, "refused", error=error)
        _JOBS.labels("refused").inc()
        log.info("job %s refused: %s", hex0x(job.reference), error)

    async def _gas_for(self, lease: Lease, job: Job) -> int | None:
        """Dry run and estimate. None: the job was refused because it would revert or needs too much gas, or the node cannot say now.

        The run has the gas that the job may have, so a contract that goes on for ever ends soon. Raises Unavailable: no answer.
        """
        call = call_request(job.target, job.calldata, sender=self.address, value=job.value, gas=self._rules.gas_ceiling)
        estimate = ("eth_estimateGas", call[1][:1])
        for answer in await self._rpc.batch_settled([call, estimate]):
            if isinstance(answer, RpcError):
                if not answer.is_of_the_call:
                    # Short of funds, overloaded, behind: the job waits as long as it is valid, and lets others pass.
                    log.warning("job %s: the node cannot say: %s", hex0x(job.reference), answer.message)
                    await self._put_off(lease, job)
                    return None
                await self._refuse(lease, job, f"would revert: {self._reason(answer)}")
                return None
            last = answer
        gas = int(last, 16) * 6 // 5
        if gas > self._rules.gas_ceiling:
            await self._refuse(lease, job, f"needs {gas} gas, the ceiling is {self._rules.gas_ceiling}")
            return None
        return gas

    def _reason(self, error: RpcError) -> str:
        """Why a dry run failed: the contract's named error, or the EVM's word."""
        named = name_of_revert(error.revert_data or b"")
        if named is None and "gas" in error.message.lower():
            return f"{error.message}; the ceiling is {self._rules.gas_ceiling}"
        return named or error.message

    def _sign(self, job: Job, nonce: int, number: int, gas: int, max_fee: int, kind: str = "send") -> Attempt:
        transaction = {
            "type": 2,
            "chainId": self._chain_id,
            "nonce": nonce,
            "to": bytes(job.target if kind == "send" else self.address),
            "value": job.value if kind == "send" else 0,
            "data": hex0x(job.calldata) if kind == "send" else "0x",
            "gas": gas,
            "maxFeePerGas": max_fee,
            # Nodes take a replacement only when tip and maximal fee are both raised.
            "maxPriorityFeePerGas": min(max_fee, self._rules.tip * _BUMP_PERCENT**number // 100**number + number),
        }
        raw, digest = self._signer.sign(transaction)
        return Attempt(nonce, number, kind, raw, digest, max_fee, self._clock(), job.reference)

    def _fee(self, head: Block) -> int:
        return min(self._rules.max_fee, 2 * head.base_fee + self._rules.tip)

    async def _chain_nonce(self, block: str = "latest") -> int:
        return int(await self._rpc.call("eth_getTransactionCount", [hex0x(self.address), block]), 16)

    async def _broadcast(self, attempt: Attempt, job: Job | None = None) -> None:
        """Send a signed transaction; whatever the node says, its receipt decides."""
        job = job if job is not None else await self._store.job(attempt.reference)
        attributes: dict[str, AttributeValue] = {
            names.RPC_SYSTEM: "jsonrpc",
            names.RPC_METHOD: "eth_sendRawTransaction",
            names.CHAIN_ID: self._chain_id,
            names.TASK_ID: hex0x(attempt.reference),
            names.TRANSACTION_HASH: hex0x(attempt.hash),
            names.ACCOUNT_NONCE: attempt.nonce,
            names.ATTEMPT_KIND: attempt.kind,
        }
        parent = restore(json.loads(job.trace or "{}") if job is not None else {})
        with tracer("placet.settlement").start_as_current_span(
            names.SEND_TRANSACTION, context=parent, kind=SpanKind.CLIENT, attributes=attributes
        ) as span:
            try:
                await self._rpc.call("eth_sendRawTransaction", [hex0x(attempt.raw)])
            except RpcError as error:
                text = error.message.lower()
                if not any(known in text for known in ("already known", "already imported", "nonce too low")):
                    span.set_attribute(names.ERROR_TYPE, error.message[:200])
                    log.warning("nonce %d: the node refuses: %s", attempt.nonce, error.message)

    # --- nonces in flight

    async def _look_after(self, lease: Lease, head: Block, nonce: int, attempts: list[Attempt]) -> None:
        """Find out whether one of the attempts was mined, and wait, replace, cancel or close."""
        reference = attempts[0].reference
        for attempt in reversed(attempts):
            receipt = await self._rpc.receipt(attempt.hash)
            if receipt is None:
                continue
            number = int(receipt["blockNumber"], 16)
            gas_used = int(receipt["gasUsed"], 16)
            changes = {"transaction_hash": attempt.hash, "block_number": number, "gas_used": gas_used}
            if head.number - number + 1 < self._rules.confirmations:
                await self._store.set_state(lease, self._clock(), reference, "mined", **changes)
                return
            await self._close(lease, head, attempts, attempt, receipt, changes)
            return
        await self._not_mined(lease, head, nonce, attempts)

    async def _close(
        self, lease: Lease, head: Block, attempts: list[Attempt], attempt: Attempt, receipt: dict[str, Any], changes: dict[str, Any]
    ) -> None:
        """`attempt` of `attempts`, all at one account nonce, is mined deep enough: its job ends, or gets another nonce."""
        now = self._clock()
        if attempt.kind == "cancel":
            # Nothing of the job can be mined any more. What is still wanted gets a new nonce.
            job = await self._store.job(attempt.reference)
            wanted = job is not None and job.valid_until > now
            if wanted and not await self._is_used_up(head, attempts):
                return
            await self._give_up(lease, attempt, "expired, and cancelled before it was mined", gas_used=changes["gas_used"], wanted=wanted)
            _GAS.labels(str(self._chain_id)).inc(changes["gas_used"])
            return
        ok = int(receipt["status"], 16) == 1
        error = "" if ok else await self._revert_reason(attempt, receipt)
        if not ok and self._rules.repeats:
            used = changes["gas_used"]
            await self._store.close_nonce(lease, now, attempt.nonce, attempt.reference, "", requeue=True, error=error, gas_used=used)
            _GAS.labels(str(self._chain_id)).inc(used)
            job = await self._store.job(attempt.reference)
            if job is not None:
                await self._put_off(lease, job)
            return
        state = "confirmed" if ok else "reverted"
        await self._store.close_nonce(lease, now, attempt.nonce, attempt.reference, state, error=error, **changes)
        _GAS.labels(str(self._chain_id)).inc(changes["gas_used"])
        _JOBS.labels(state).inc()
        log.info("job %s %s in block %s", hex0x(attempt.reference), state, changes["block_number"])

    async def _give_up(self, lease: Lease, attempt: Attempt, error: str, *, wanted: bool, **changes: Any) -> None:
        """The account nonce is used up and not by the job: refuse the job, or let it have another nonce."""
        error = "" if wanted else error
        await self._store.close_nonce(
            lease, self._clock(), attempt.nonce, attempt.reference, "refused", requeue=wanted, error=error, transaction_hash=None, **changes
        )
        if not wanted:
            _JOBS.labels("refused").inc()
        log.info("job %s: nonce %d is used up; %s", hex0x(attempt.reference), attempt.nonce, error or "it gets another")

    async def _revert_reason(self, attempt: Attempt, receipt: dict[str, Any]) -> str:
        """Why a mined transaction reverted, as far as running it again shows. The job is over whether or not that can be had."""
        job = await self._store.job(attempt.reference)
        if job is None:
            return "reverted"
        call = call_request(job.target, job.calldata, sender=self.address, value=job.value, gas=self._rules.gas_ceiling)
        try:
            await self._rpc.call(call[0], [call[1][0], receipt["blockNumber"]])
        except RpcError as error:
            return self._reason(error)
        except Unavailable:
            return "reverted; the reason could not be read"
        return "reverted"

    async def _not_mined(self, lease: Lease, head: Block, nonce: int, attempts: list[Attempt]) -> None:
        now = self._clock()
        job = await self._store.job(attempts[0].reference)
        if job is None:
            return
        newest = attempts[-1]
        if job.state == "mined":  # its block was reorganised away
            await self._store.set_state(lease, now, job.reference, "sent")
            await self._broadcast(newest, job)
            return
        if now - newest.created_at > self._rules.bump_after_s and await self._is_used_up(head, attempts):
            wanted = job.valid_until > max(now, head.timestamp)
            await self._give_up(lease, newest, "its account nonce was used by a transaction that is not ours", wanted=wanted)
            return
        expired = job.valid_until < max(now, head.timestamp)
        if expired and not attempts_of(attempts, "cancel"):
            # It would revert now, and gas would be paid for that. Nothing but a cancellation frees the nonce.
            await self._replace(lease, replace_job(job), newest, kind="cancel", gas=_PLAIN_GAS)
        elif now - newest.created_at > self._rules.bump_after_s:
            fee = newest.max_fee * _BUMP_PERCENT // 100 + 1
            if fee <= self._rules.max_fee:
                await self._replace(lease, job, newest, kind=newest.kind, gas=_gas_of(newest, self._rules.gas_ceiling))
            else:
                await self._broadcast(newest, job)
        elif await self._chain_nonce() <= nonce:
            await self._broadcast(newest, job)  # the node may have forgotten it

    async def _is_used_up(self, head: Block, attempts: list[Attempt]) -> bool:
        """Whether an account nonce is final and none of its transactions that execute the job is mined: somebody else has this key, or a
        cancellation was first.

        One request, so that one node says both: behind an address with several nodes, one may know that the nonce is used and another not
        yet of the receipt, and the job would be queued again though it was executed.
        """
        final = hex(max(0, head.number + 1 - self._rules.confirmations))
        sent = attempts_of(attempts, "send")
        requests: list[tuple[str, list[Any]]] = [("eth_getTransactionCount", [hex0x(self.address), final])]
        requests += [("eth_getTransactionReceipt", [hex0x(attempt.hash)]) for attempt in sent]
        count, *receipts = await self._rpc.batch(requests)
        return int(count, 16) > attempts[0].nonce and not any(receipts)

    async def _replace(self, lease: Lease, job: Job, newest: Attempt, *, kind: str, gas: int) -> None:
        fee = min(self._rules.max_fee, newest.max_fee * _BUMP_PERCENT // 100 + 1)
        attempt = self._sign(job, newest.nonce, newest.number + 1, gas, fee, kind)
        await self._store.add_attempt(lease, self._clock(), attempt, gas)
        await self._broadcast(attempt, job)


def replace_job(job: Job) -> Job:
    """A job without its call: what a cancellation signs."""
    return replace(job, calldata=b"", value=0)


def _gas_of(attempt: Attempt, ceiling: int) -> int:
    """Gas limit of a replacement: as generous as allowed, since state may have moved since the estimate."""
    return _PLAIN_GAS if attempt.kind == "cancel" else ceiling
