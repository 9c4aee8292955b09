"""Settlement's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from placet.core.settings import ServiceSettings


class SettlementSettings(ServiceSettings):
    """One replica of settlement; one of them leads for each key."""

    database: SecretStr
    bus_key_file: Path = Field(description="32-byte Ed25519 seed, hex; signs settlement events")
    sender_key_file: Path = Field(description="hex secret of the account that sends attestations; an interface stands before it")
    trusted_aggregators: list[str] = Field(min_length=1)
    lease_s: float = Field(default=10.0, gt=1, description="a leader that is silent for so long is replaced")
    poll_s: float = Field(default=0.25, gt=0, le=60, description="how often the chain is looked at")
    bump_after_s: float = Field(default=30.0, gt=0, description="a transaction not mined by then is replaced with a higher fee")
    max_fee_gwei: float = Field(default=500.0, gt=0, description="never pay more a unit of gas")
    tip_gwei: float = Field(default=1.0, ge=0)
    gas_ceiling: int = Field(default=3_000_000, ge=21_000, description="a job that needs more gas is refused")
    gas_per_payer_per_day: int = Field(default=50_000_000, ge=0, description="budget of one payer")
    max_in_flight: int = Field(default=16, ge=1, le=256, description="account nonces not yet final")
