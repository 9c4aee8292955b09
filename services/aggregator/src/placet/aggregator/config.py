"""The aggregator's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from placet.core.settings import ServiceSettings


class AggregatorSettings(ServiceSettings):
    """One replica of the aggregator."""

    bus_key_file: Path = Field(description="32-byte Ed25519 seed, hex; replicas share it")
    trusted_gateways: list[str] = Field(min_length=1, description="Ed25519 keys (0x hex) whose task batches are taken")
    linger_ms: int = Field(default=250, ge=0, le=5000, description="after quorum stake was heard: wait for the others so long")
    straggler_ms: int = Field(default=10, ge=0, le=1000, description="after quorum signed: wait for more so long (5.8k gas each)")
    respond_within_s: float = Field(default=8.0, gt=0, le=25, description="after observing ended: wait for signatures so long")
    verify_threads: int = Field(default=2, ge=1, le=64)
