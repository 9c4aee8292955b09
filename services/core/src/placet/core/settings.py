"""Configuration of every service: `PLACET_*` environment variables and mounted files only, typed, printed at start with secrets masked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from placet.core.errors import InvalidInput
from placet.core.evm.reader import Deployment
from placet.core.types import address_from


class ChainSettings(BaseModel):
    """One chain: its RPC URLs in order of preference, the deployments file, and how many blocks make a transaction final here."""

    id: int
    rpc: list[str] = Field(min_length=1)
    deployments: Path
    confirmations: int = Field(default=1, ge=1)
    reference_block_back: int = Field(
        default=0, ge=0, description="blocks from the head to a batch's reference block; operators' max_reference_lag_s must allow for them"
    )


class ServiceSettings(BaseSettings):
    """What all services have in common. Nested values: PLACET_CHAINS is JSON."""

    model_config = SettingsConfigDict(env_prefix="PLACET_", env_nested_delimiter="__", extra="ignore")

    environment: str = Field(default="development", pattern="^(development|production)$", description="production refuses every substitute")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(default=0, ge=0, le=65535, description="livez, readyz, metrics, version; 0 picks a free one")
    drain_s: float = Field(default=25.0, gt=0, description="how long SIGTERM waits for work in hand")

    chains: list[ChainSettings] = Field(min_length=1)
    bus: str = Field(default="kafka", pattern="^(kafka|inprocess)$")
    kafka_bootstrap: str = "127.0.0.1:9092"
    kafka_security: str = Field(default="PLAINTEXT", pattern="^(PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)$")
    kafka_username: str | None = None
    kafka_password: SecretStr | None = None
    kafka_ca_file: Path | None = None
    kafka_cert_file: Path | None = None
    kafka_key_file: Path | None = None
    instance_id: str | None = Field(default=None, description="static group membership: the pod's name")

    object_store: str = Field(default="file:///var/lib/placet/objects", description="URL of the shared object store")
    otlp_endpoint: str | None = Field(default=None, description="OTLP/HTTP traces endpoint; none: no traces leave")
    trace_ratio: float = Field(default=1.0, ge=0.0, le=1.0)


def load_deployment(path: Path, chain_id: int) -> Deployment:
    """Read deployments/<chainId>.json.

    Raises:
        InvalidInput: not there, not of the expected form, or for another chain.
    """
    try:
        document: dict[str, Any] = orjson.loads(path.read_bytes())
        deployment = Deployment(
            chain_id=int(document["chainId"]),
            validator=address_from(document["validator"], field="validator"),
            operator_registry=address_from(document["operatorRegistry"], field="operatorRegistry"),
            policy_registry=address_from(document["policyRegistry"], field="policyRegistry"),
            block_number=int(document["blockNumber"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"deployments file {path.name}: {type(error).__name__}: {error}", field="deployments") from None
    if deployment.chain_id != chain_id:
        raise InvalidInput(f"deployments file {path.name} is for chain {deployment.chain_id}, not {chain_id}", field="deployments")
    return deployment


def masked(settings: BaseModel) -> dict[str, Any]:
    """The settings as JSON values with secrets masked; RPC URLs shown without path and query (they often hold keys)."""
    values: dict[str, Any] = settings.model_dump(mode="json")
    for chain in values.get("chains", []):
        chain["rpc"] = [
            url.split("://", 1)[0] + "://" + url.split("://", 1)[-1].split("/", 1)[0].rsplit("@", 1)[-1] for url in chain["rpc"]
        ]
    for name in ("database", "kafka_password"):
        if values.get(name):
            values[name] = "****"
    return values
