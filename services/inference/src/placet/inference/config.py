"""The inference service's settings: `PLACET_*` environment variables and mounted files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr

from placet.core.settings import ServiceSettings


class UpstreamSettings(BaseModel):
    """An OpenAI-style service that a model of kind `upstream` is relayed to."""

    url: str = Field(description="what /chat/completions is put behind, for instance https://llm.example/v1")
    model: str = Field(description="the upstream's name for the model")
    api_key_file: Path | None = None
    tools: bool = Field(default=False, description="whether it takes tools")
    concurrency: int = Field(default=16, ge=1, le=1024)
    context_length: int | None = Field(default=None, ge=1)


class InferenceSettings(ServiceSettings):
    """One replica."""

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535, description="the gRPC port; 0 picks a free one")
    http_port: int = Field(default=0, ge=0, le=65535, description="Open Inference V2 for callers inside the cluster; 0 picks a free one")
    database: SecretStr = Field(description="the Model Hub's database, shared by replicas")
    hub_id: str = Field(description="name of this hub, which publishers sign, for instance placet:8453")
    bus_key_file: Path = Field(description="32-byte Ed25519 seed, hex; gateways and settlement must trust its public key")
    receipt_key_file: Path | None = Field(
        default=None,
        description="32-byte Ed25519 seed, hex; signs receipts, registered in NodeRegistry. In a TEE: none, the key is made there",
    )
    tee: Literal["none", "configfs-tsm", "software-dev"] = Field(
        default="none",
        description="where evidence comes from: the kernel (TDX, SEV-SNP), or the development attester, refused in production",
    )
    tee_software_key_file: Path | None = Field(default=None, description="software-dev: its Ed25519 seed, hex; policies pin its public key")
    tee_pccs_url: str = Field(default="https://api.trustedservices.intel.com", description="where Intel's collateral is fetched")
    tee_kds_url: str = Field(default="https://kdsintf.amd.com", description="where AMD's revocation lists are fetched")
    node_address: str | None = Field(default=None, description="this node in NodeRegistry")
    jurisdiction: str | None = Field(default=None, pattern="^[A-Z]{2}$", description="ISO 3166-1 alpha-2: declared, not proven")
    model_cache: Path = Field(default=Path("/var/cache/placet/models"), description="files of models, by digest")
    max_loaded_bytes: int = Field(default=8 << 30, ge=1 << 20, description="files of all models in memory together")
    max_blob_bytes: int = Field(default=4 << 30, ge=1 << 20, description="one uploaded file")
    max_model_bytes: int = Field(default=8 << 30, ge=1 << 20, description="all files of one version")
    check_memory_bytes: int = Field(default=8 << 30, ge=1 << 28, description="memory of the process that checks an upload")
    check_cpu_s: int = Field(default=120, ge=1, le=3600, description="CPU seconds of the process that checks an upload")
    preload: list[str] = Field(default_factory=list, description="references of models to load before this replica is ready")
    longest_request_s: float = Field(default=600, gt=0, le=3600)
    threads_per_model: int = Field(default=1, ge=1, le=64, description="threads of one run; requests run side by side")
    runs_per_model: int = Field(default=2, ge=1, le=64, description="runs of one model at once")
    max_waiting: int = Field(default=256, ge=1, description="requests that wait for one model; more are told to come back")
    proofs: bool = Field(default=False, description="offer mode zkml: proofs are made here, one after the other")
    proof_memory_bytes: int = Field(default=4 << 30, ge=1 << 28, description="memory of the process that makes proofs")
    proof_timeout_s: float = Field(default=120, gt=0, le=3600, description="one proof, reading its keys included")
    proof_development_setup: bool = Field(
        default=False,
        description="make keys for models that have none; whoever runs the replica can forge with them: refused in production",
    )
    upstreams: dict[str, UpstreamSettings] = Field(
        default_factory=dict,
        description="publisher/name of models of kind upstream, and where they are relayed to: url, model, api_key_file, tools",
    )
    cuda: bool = Field(default=True, description="use the CUDA provider where it is present")
