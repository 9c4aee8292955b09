"""Wiring of the aggregator. Nothing else."""

from __future__ import annotations

from placet.aggregator.config import AggregatorSettings
from placet.aggregator.service import AggregatorService, Timing
from placet.core.admin import AdminServer
from placet.core.runtime import Resources, main_of, read_bus_key, trusted_keys


class Aggregator:
    """The aggregator, assembled."""

    def __init__(self, settings: AggregatorSettings, resources: Resources) -> None:
        self.service = AggregatorService(
            bus=resources.bus,
            chains=resources.chains,
            objects=resources.objects,
            bus_signer=read_bus_key(settings.bus_key_file),
            gateways=trusted_keys(settings.trusted_gateways, "trusted_gateways"),
            timing=Timing(settings.linger_ms / 1000, settings.straggler_ms / 1000, settings.respond_within_s),
            threads=settings.verify_threads,
            instance_id=settings.instance_id,
        )

    async def start(self) -> None:
        """Nothing to prepare: everything is rebuilt from the bus."""

    async def run(self) -> None:
        await self.service.run()

    async def drain(self) -> None:
        await self.service.drain(20.0)

    async def stop(self) -> None:
        if self.service.subscription is not None:
            await self.service.subscription.close()

    def checks(self, admin: AdminServer) -> None:
        async def consuming() -> str | None:
            subscription = self.service.subscription
            return None if subscription is None else await subscription.stuck()

        admin.live("consumer", consuming)


def main() -> None:
    """`placet-aggregator`."""
    main_of("aggregator", AggregatorSettings, Aggregator)


if __name__ == "__main__":
    main()
