"""Wiring of settlement. Nothing else."""

from __future__ import annotations

import secrets
import socket

from placet.core.admin import AdminServer
from placet.core.db import connect, migrate, schema_problem
from placet.core.runtime import Resources, main_of, read_bus_key, trusted_keys
from placet.settlement.config import SettlementSettings
from placet.settlement.parts import Parts, run_all
from placet.settlement.sender import Sender, SendingRules
from placet.settlement.service import SettlementService
from placet.settlement.signer import LocalTransactionSigner
from placet.settlement.store import Store

MIGRATIONS = "placet.settlement.migrations"
_GWEI = 10**9


class Settlement:
    """Settlement, assembled."""

    def __init__(self, settings: SettlementSettings, resources: Resources) -> None:
        self._database = connect(settings.database.get_secret_value())
        self.store = Store(self._database)
        signer = LocalTransactionSigner(settings.sender_key_file)

        def rules(confirmations: int) -> SendingRules:
            return SendingRules(
                confirmations=confirmations,
                bump_after_s=settings.bump_after_s,
                max_fee=int(settings.max_fee_gwei * _GWEI),
                tip=int(settings.tip_gwei * _GWEI),
                gas_ceiling=settings.gas_ceiling,
                gas_per_payer_per_day=settings.gas_per_payer_per_day,
                max_in_flight=settings.max_in_flight,
            )

        senders = {
            chain.id: Sender(
                rpc=resources.chains[chain.id].rpc, chain_id=chain.id, signer=signer, store=self.store, rules=rules(chain.confirmations)
            )
            for chain in settings.chains
        }
        holder = f"{(settings.instance_id or socket.gethostname())[:55]}-{secrets.token_hex(4)}"
        self.service = SettlementService(
            bus=resources.bus,
            chains=resources.chains,
            senders=senders,
            store=self.store,
            bus_signer=read_bus_key(settings.bus_key_file),
            aggregators=trusted_keys(settings.trusted_aggregators, "trusted_aggregators"),
            holder=holder,
            lease_s=settings.lease_s,
            poll_s=settings.poll_s,
            instance_id=settings.instance_id,
        )
        self.parts = Parts(settings, resources, engine=self._database, store=self.store, rules=rules, holder=holder, taken={signer.address})

    @property
    def grpc_port(self) -> int:
        """Where PaymentService listens, once started; 0: nowhere."""
        return self.parts.port

    async def start(self) -> None:
        await migrate(self._database, MIGRATIONS)
        await self.parts.start()

    async def run(self) -> None:
        await run_all([self.service.run(), *self.parts.loops()])

    async def drain(self) -> None:
        """Finish gateways' calls. Else nothing: whatever is written down is taken up again."""
        await self.parts.drain()

    async def stop(self) -> None:
        await self.parts.stop()
        if self.service.subscription is not None:
            await self.service.subscription.close()
        await self._database.dispose()

    def checks(self, admin: AdminServer) -> None:
        async def consuming() -> str | None:
            subscription = self.service.subscription
            return None if subscription is None else await subscription.stuck()

        admin.live("consumer", consuming)
        self.parts.checks(admin)
        admin.ready("schema", lambda: schema_problem(self._database, MIGRATIONS))


def main() -> None:
    """`placet-settlement`."""
    main_of("settlement", SettlementSettings, Settlement)


if __name__ == "__main__":
    main()
