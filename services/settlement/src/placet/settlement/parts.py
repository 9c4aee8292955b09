"""What settlement does besides attestations, assembled as far as the settings ask for it: payments, refunds, receipts. Each has its key."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from placet.core.admin import AdminServer
from placet.core.errors import InvalidInput, Unavailable
from placet.core.payment.offers import Scheme, chain_id_of
from placet.core.runtime import Resources, trusted_keys
from placet.core.types import Address, address_from
from placet.settlement.config import SettlementSettings
from placet.settlement.leading import Lead, Work
from placet.settlement.payments.balances import Balances
from placet.settlement.payments.book import Allowed, PaymentBook
from placet.settlement.payments.desk import PaymentDesk
from placet.settlement.payments.refunds import RefundDesk
from placet.settlement.payments.server import FindInclusion, PaymentServicer, make_server
from placet.settlement.payments.store import PaymentStore
from placet.settlement.receipts.desk import BatchRules, ReceiptDesk
from placet.settlement.receipts.inclusion import inclusion_of
from placet.settlement.receipts.reader import ReceiptReader
from placet.settlement.receipts.store import ReceiptStore
from placet.settlement.sender import Sender, SendingRules
from placet.settlement.signer import LocalTransactionSigner
from placet.settlement.store import PAYMENTS, RECEIPTS, REFUNDS, Store


class Parts:
    """Payments, refunds and receipts. `rules(confirmations)` are what all keys have in common; `taken` are accounts with another use.

    Raises:
        InvalidInput: settings that contradict each other; names one.
    """

    def __init__(
        self,
        settings: SettlementSettings,
        resources: Resources,
        *,
        engine: AsyncEngine,
        store: Store,
        rules: Callable[[int], SendingRules],
        holder: str,
        taken: set[Address],
    ) -> None:
        self._settings = settings
        self._resources = resources
        self._store = store
        self._rules = rules
        self._holder = holder
        self._taken = taken
        self._confirmations = {chain.id: chain.confirmations for chain in settings.chains}
        self._leads: dict[tuple[str, int], Lead] = {}
        self._payments = PaymentStore(engine)
        self._receipts = ReceiptStore(engine)
        self._reader: ReceiptReader | None = None
        book, balances = self._payment_parts()
        inclusion = self._receipt_parts()
        self._servicer = PaymentServicer(book, balances, inclusion)
        self._server: grpc.aio.Server | None = None
        self.port = 0
        if settings.grpc_port is None and (book is not None or settings.refund_vaults):
            raise InvalidInput("payments are set up, and nobody can ask for them: grpc_port is not set", field="grpc_port")

    # --- assembling

    def _payment_parts(self) -> tuple[PaymentBook | None, Balances | None]:
        settings = self._settings
        allowed = [
            Allowed(
                Scheme(item.scheme),
                self._chain(item.network, "accepted_payments"),
                address_from(item.asset),
                address_from(item.pay_to) if item.pay_to else None,
            )
            for item in settings.accepted_payments
        ]
        if not allowed:
            if settings.refund_vaults:
                raise InvalidInput("refunds are of payments: accepted_payments is empty", field="refund_vaults")
            return None, None
        facilitator = self._signer(settings.facilitator_key_file, "facilitator_key_file")
        bounds = {
            "lane": PAYMENTS,
            "patient": True,
            "bump_after_s": settings.payment_bump_after_s,
            "gas_per_payer_per_day": settings.payment_gas_per_payer_per_day,
            "gas_per_day": settings.payment_gas_per_day,
            "max_in_flight": settings.payment_max_in_flight,
        }
        for chain_id in sorted({kind.chain_id for kind in allowed}):
            desk = PaymentDesk(
                sender=self._sender(chain_id, facilitator, **bounds),
                rpc=self._resources.chains[chain_id].rpc,
                chain_id=chain_id,
                confirmations=self._confirmations[chain_id],
                store=self._store,
                payments=self._payments,
            )
            self._lead(PAYMENTS, chain_id, desk)
        assets = {(kind.chain_id, kind.asset) for kind in allowed}
        vaults = self._vaults(assets)
        rpcs = {chain_id: reader.rpc for chain_id, reader in self._resources.chains.items()}
        book = PaymentBook(
            store=self._store, payments=self._payments, allowed=allowed, facilitator=facilitator.address, vaults=vaults, wake=self._wake
        )
        return book, Balances(rpcs, assets, keep_s=settings.balance_cache_s)

    def _vaults(self, assets: set[tuple[int, Address]]) -> dict[tuple[int, Address], Address]:
        settings = self._settings
        vaults = {
            (self._chain(item.network, "refund_vaults"), address_from(item.asset)): address_from(item.vault)
            for item in settings.refund_vaults
        }
        if not vaults:
            return {}
        if not set(vaults) <= assets:
            raise InvalidInput("refund_vaults: an asset is refunded that no accepted payment is of", field="refund_vaults")
        signer = self._signer(settings.refund_key_file, "refund_key_file")
        budget = settings.refund_gas_per_day
        for chain_id in sorted({chain_id for chain_id, _ in vaults}):
            sender = self._sender(
                chain_id, signer, lane=REFUNDS, patient=True, repeats=True, gas_per_payer_per_day=budget, gas_per_day=budget
            )
            desk = RefundDesk(
                sender=sender,
                rpc=self._resources.chains[chain_id].rpc,
                chain_id=chain_id,
                confirmations=self._confirmations[chain_id],
                store=self._store,
                payments=self._payments,
            )
            self._lead(REFUNDS, chain_id, desk)
        return vaults

    def _receipt_parts(self) -> FindInclusion | None:
        settings = self._settings
        if settings.receipt_ledger is None:
            return None
        if not settings.trusted_inference:
            raise InvalidInput("trusted_inference: whose receipts are gathered?", field="trusted_inference")
        chain_id = self._chain(settings.receipt_ledger.network, "receipt_ledger")
        signer = self._signer(settings.receipts_key_file, "receipts_key_file")
        budget = settings.receipts_gas_per_day
        desk = ReceiptDesk(
            sender=self._sender(chain_id, signer, lane=RECEIPTS, patient=True, repeats=True, gas_per_payer_per_day=budget),
            rpc=self._resources.chains[chain_id].rpc,
            chain_id=chain_id,
            confirmations=self._confirmations[chain_id],
            ledger=address_from(settings.receipt_ledger.address),
            receipts=self._receipts,
            objects=self._resources.objects,
            rules=BatchRules(settings.receipts_per_root, settings.receipts_wait_s),
        )
        self._lead(RECEIPTS, chain_id, desk)
        trusted = trusted_keys(settings.trusted_inference, "trusted_inference")
        self._reader = ReceiptReader(self._resources.bus, self._receipts, trusted, settings.instance_id)
        return functools.partial(inclusion_of, self._receipts)

    def _chain(self, network: str, field: str) -> int:
        chain_id = chain_id_of(network, field)
        if chain_id not in self._confirmations:
            raise InvalidInput(f"{field}: {network} is none of the chains", field=field)
        return chain_id

    def _signer(self, path: Path | None, field: str) -> LocalTransactionSigner:
        if path is None:
            raise InvalidInput(f"{field} is needed", field=field)
        signer = LocalTransactionSigner(path, field)
        if signer.address in self._taken:
            raise InvalidInput(f"{field}: the account has another use here; each has a key of its own", field=field)
        self._taken.add(signer.address)
        return signer

    def _sender(self, chain_id: int, signer: LocalTransactionSigner, **bounds: Any) -> Sender:
        rules = replace(self._rules(self._confirmations[chain_id]), **bounds)
        return Sender(rpc=self._resources.chains[chain_id].rpc, chain_id=chain_id, signer=signer, store=self._store, rules=rules)

    def _lead(self, lane: str, chain_id: int, work: Work) -> None:
        settings = self._settings
        self._leads[lane, chain_id] = Lead(
            work, chain_id, store=self._store, holder=self._holder, lease_s=settings.lease_s, poll_s=settings.poll_s
        )

    def _wake(self, lane: str, chain_id: int) -> None:
        lead = self._leads.get((lane, chain_id))
        if lead is not None:
            lead.wake()

    # --- life

    async def start(self) -> None:
        """Listen, if that is asked for. Raises Unavailable: the port is taken."""
        if self._settings.grpc_port is None:
            return
        server = make_server(self._servicer)
        try:
            self.port = server.add_insecure_port(f"{self._settings.host}:{self._settings.grpc_port}")
        except RuntimeError as error:
            raise Unavailable(f"PaymentService cannot listen: {error}") from None
        await server.start()
        self._server = server

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """What runs until cancelled."""
        reader = [] if self._reader is None else [self._reader.run()]
        return [*(lead.run() for lead in self._leads.values()), *reader]

    async def drain(self) -> None:
        """Finish calls that are under way; no new ones are taken."""
        if self._server is not None:
            await self._server.stop(5.0)

    async def stop(self) -> None:
        """Let go of everything."""
        if self._server is not None:
            await self._server.stop(None)
        if self._reader is not None and self._reader.subscription is not None:
            await self._reader.subscription.close()

    def checks(self, admin: AdminServer) -> None:
        """The receipts' consumer."""

        async def consuming() -> str | None:
            subscription = None if self._reader is None else self._reader.subscription
            return None if subscription is None else await subscription.stuck()

        admin.live("receipts", consuming)


async def run_all(loops: list[Coroutine[Any, Any, None]]) -> None:
    """Run until cancelled; when one fails, the others end too."""
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(loop)
