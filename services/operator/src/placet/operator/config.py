"""The operator's settings: `PLACET_*` environment variables and mounted files."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from placet.core.settings import ServiceSettings


class OperatorSettings(ServiceSettings):
    """One operator identity."""

    operator_address: str = Field(description="the address under which the keys are registered")
    bls_keystore: Path = Field(description="EIP-2335 keystore of the BLS key")
    bls_password_file: Path
    bus_key_file: Path = Field(description="32-byte Ed25519 seed, hex")
    database: SecretStr = Field(description="signing log; sqlite only with exactly one replica")
    trusted_gateways: list[str] = Field(min_length=1, description="Ed25519 keys (0x hex) whose task batches are taken")
    trusted_aggregators: list[str] = Field(min_length=1, description="Ed25519 keys (0x hex) whose proposals are taken")
    max_reference_block_age: int = Field(default=32, ge=0, description="blocks a batch's reference block may lie behind our head")
    max_reference_lag_s: int = Field(
        default=90, ge=0, description="by how much the block after a batch's reference block may be older than our head, in seconds"
    )
    keep_evidence_days: int = Field(default=90, ge=8, description="how long evidence is kept; longer than attestations are valid")
    evaluation_threads: int = Field(
        default=2,
        ge=2,
        le=64,
        description="threads that evaluate Rego; a policy of much fuel gets another while it has fewer than are left",
    )
    component_workers: int = Field(
        default=4,
        ge=2,
        le=64,
        description="processes that run PolicyData, 50 MB each, started on demand; a policy gets another while it has fewer than are left",
    )
    compiled_cache: Path | None = Field(default=None, description="private folder for compiled code, shared by operators of one machine")
    secrets_file: Path | None = Field(default=None, description="JSON: policyDataId -> {name: value}, handed to components")
    allow_private_hosts: list[str] = Field(default_factory=list, description="host:port of this network that components may fetch")
