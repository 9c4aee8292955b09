"""Settlement's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, SecretStr

from placet.core.settings import ServiceSettings

_NETWORK, _ADDRESS = r"^eip155:[1-9][0-9]{0,15}$", r"^0x[0-9a-fA-F]{40}$"


class AcceptedPayment(BaseModel):
    """A kind of payment that is settled. Without `pay_to`, to anybody."""

    scheme: str = Field(pattern="^(exact|upto)$")
    network: str = Field(pattern=_NETWORK)
    asset: str = Field(pattern=_ADDRESS)
    pay_to: str = Field(default="", pattern=rf"^$|{_ADDRESS}")


class Vault(BaseModel):
    """The RefundVault of an asset."""

    network: str = Field(pattern=_NETWORK)
    asset: str = Field(pattern=_ADDRESS)
    vault: str = Field(pattern=_ADDRESS)


class Ledger(BaseModel):
    """A ReceiptLedger."""

    network: str = Field(pattern=_NETWORK)
    address: str = Field(pattern=_ADDRESS)


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

    host: str = Field(default="127.0.0.1", description="where PaymentService listens: inside the cluster only")
    grpc_port: int | None = Field(default=None, ge=0, le=65535, description="PaymentService's port; none: off, 0 picks a free one")
    accepted_payments: list[AcceptedPayment] = Field(
        default_factory=list, description="payments that are settled, each `{scheme, network, asset, pay_to}`; without pay_to to anybody"
    )
    facilitator_key_file: Path | None = Field(default=None, description="hex secret of the account that executes payments")
    payment_bump_after_s: float = Field(default=6.0, gt=0, description="as `bump_after_s`, for payments: they end soon")
    payment_gas_per_payer_per_day: int = Field(default=10_000_000, ge=0, description="budget of one payer's payments")
    payment_gas_per_day: int = Field(default=2_000_000_000, ge=0, description="budget of the facilitator's key")
    payment_max_in_flight: int = Field(default=64, ge=1, le=256, description="account nonces of the facilitator not yet final")
    balance_cache_s: float = Field(default=2.0, ge=0, le=60, description="so long a payer's balance is not read again")
    refund_key_file: Path | None = Field(default=None, description="hex secret of the account that credits refunds, the vaults' settlement")
    refund_vaults: list[Vault] = Field(default_factory=list, description="where refunds are credited, each `{network, asset, vault}`")
    refund_gas_per_day: int = Field(default=100_000_000, ge=0, description="budget of the refunds' key")
    receipts_key_file: Path | None = Field(default=None, description="hex secret of the account that posts roots, a poster of the ledger")
    receipt_ledger: Ledger | None = Field(default=None, description="where receipts' roots are posted, `{network, address}`; none: nowhere")
    trusted_inference: list[str] = Field(default_factory=list, description="bus keys of inference, whose receipts are gathered")
    receipts_per_root: int = Field(default=1024, ge=1, le=16_384)
    receipts_wait_s: float = Field(default=60.0, gt=0, description="a root is made of fewer receipts when the first waits for so long")
    receipts_gas_per_day: int = Field(default=200_000_000, ge=0, description="budget of the receipts' key")
