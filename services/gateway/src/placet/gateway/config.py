"""The gateway's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from placet.core import limits
from placet.core.settings import ServiceSettings
from placet.gateway.payment.assets import PaymentAsset


class GatewaySettings(ServiceSettings):
    """One replica of the gateway."""

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535, description="the public HTTP port; 0 picks a free one")
    grpc_port: int = Field(default=0, ge=0, le=65535, description="Open Inference V2 over gRPC; 0 picks a free one")
    database: SecretStr
    bus_key_file: Path = Field(description="32-byte Ed25519 seed, hex; operators must trust its public key")
    trusted_aggregators: list[str] = Field(min_length=1, description="Ed25519 keys (0x hex) whose attestations are taken")
    trusted_settlements: list[str] = Field(default_factory=list, description="Ed25519 keys (0x hex) whose settlement events are taken")
    evidence_urls: list[str] = Field(default_factory=list, description="where operators serve evidence records")
    batch_wait_ms: float = Field(default=4.0, ge=0, le=1000, description="how long the oldest task of a batch waits for company")
    observe_for_ms: int = Field(default=limits.DEFAULT_OBSERVE_FOR_MS, ge=100, le=limits.MAX_OBSERVE_FOR_MS)
    answer_within_s: float = Field(default=20.0, gt=0, le=60, description="how long a caller is kept waiting for a result")
    keep_tasks_days: int = Field(default=30, ge=1, description="how long answers, and the Idempotency-Keys they were asked with, are kept")
    max_waiting: int = Field(default=10_000, ge=1, description="tasks in hand; a tenant gets a place while it has fewer than are left")
    simulation_workers: int = Field(default=1, ge=1, le=16)
    inference: list[str] = Field(default_factory=list, description="host:port of inference replicas; a name may mean several")
    trusted_inference: list[str] = Field(default_factory=list, description="Ed25519 keys (0x hex) of replicas whose receipts are kept")
    payment_assets: list[PaymentAsset] = Field(
        default_factory=list, description="tokens that paid models are paid in; none: nothing is sold"
    )
    payment_service: str | None = Field(default=None, description="host:port of settlement's payment service")
    payment_longest_s: int = Field(default=120, ge=1, le=3600, description="how long a paid answer may take")
    payment_timeout_s: int = Field(default=300, ge=60, le=86_400, description="how long an offer is valid, and what is signed for it")
    payment_credit_limit: int = Field(
        default=1_000_000, ge=1, description="atomic units a payer may have open: work that is not settled yet"
    )
    payment_max_open: int = Field(default=16, ge=1, description="payments of one payer that may be open at once")
    payment_wait_s: float = Field(default=5.0, ge=0, le=60, description="how long an answer is held back for its payment to be final")
    prepaid_pay_to: str | None = Field(
        default=None, description="address that prepaid keys are paid to, by whom publishers are then paid; none: no keys are sold"
    )
    keep_receipts_days: int = Field(default=400, ge=1, description="how long receipts are kept here")
    allow_private_hosts: list[str] = Field(default_factory=list, description="host:port here that simulated components may fetch")
    compiled_cache: Path | None = None
