"""What the pool and its workers say to each other: frames of JSON, a u32 length (big endian) and that many bytes.

JSON and not pickle, because a worker runs strangers' code: whatever became of it, it can only answer with data.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from placet.sandbox.chain import ChainEndpoint
from placet.sandbox.errors import EvaluationFailed, PolicyRejected, SandboxError, SandboxUnavailable
from placet.sandbox.policydata import ComponentFailed, ComponentRejected, ComponentRun, ReplayDiverged, RunContext, RunRequest
from placet.sandbox.rego import DataSection, Evaluation, Explanation, FileCoverage, PolicySource, RegoLimits
from placet.sandbox.transcript import Transcript

MAX_FRAME_BYTES = 96 << 20

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class HostConfig:
    """What a component run in a worker may reach, besides what its manifest says.

    `network` False takes the fetcher away (simulation of components that are not admitted). `private_hosts`: see
    `FetchPolicy`. `ca_file` replaces the system's trust roots.
    """

    network: bool = True
    private_hosts: tuple[str, ...] = ()
    ca_file: str | None = None
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    endpoint: ChainEndpoint | None = None


def pack(message: Message) -> bytes:
    body = json.dumps(message, separators=(",", ":"), ensure_ascii=True).encode()
    return len(body).to_bytes(4, "big") + body


def source_to_wire(source: PolicySource) -> Message:
    return {
        "modules": dict(source.modules),
        "entrypoint": source.entrypoint,
        "data": [asdict(section) for section in source.data],
        "limits": asdict(source.limits),
    }


def source_from_wire(message: Message) -> PolicySource:
    data = tuple(DataSection(**section) for section in message["data"])
    return PolicySource(message["modules"], message["entrypoint"], data, RegoLimits(**message["limits"]))


def request_to_wire(request: RunRequest) -> Message:
    return asdict(request)


def request_from_wire(message: Message) -> RunRequest:
    return RunRequest(RunContext(**message["context"]), message["arguments_json"], message["intent_json"], message["params_json"])


def host_to_wire(host: HostConfig) -> Message:
    return asdict(host)


def host_from_wire(message: Message) -> HostConfig:
    endpoint = message.pop("endpoint")
    if endpoint is not None:
        endpoint = ChainEndpoint(tuple(endpoint["urls"]), endpoint["block_hash"], endpoint["timeout_s"])
    private_hosts = tuple(message.pop("private_hosts"))
    return HostConfig(**message, private_hosts=private_hosts, endpoint=endpoint)


def evaluation_to_wire(evaluation: Evaluation) -> Message:
    return {"value_json": evaluation.value_json, "fuel": evaluation.fuel}


def evaluation_from_wire(message: Message) -> Evaluation:
    return Evaluation(message["value_json"], message["fuel"])


def explanation_to_wire(explanation: Explanation) -> Message:
    return asdict(explanation)


def explanation_from_wire(message: Message) -> Explanation:
    coverage = {file: FileCoverage(tuple(c["covered"]), tuple(c["not_covered"])) for file, c in message["coverage"].items()}
    return Explanation(message["value_json"], message["error"], tuple(message["prints"]), coverage, message["fuel"])


def run_to_wire(run: ComponentRun) -> Message:
    return {"output_json": run.output_json, "fuel": run.fuel, "transcript": run.transcript.to_json(), "pure": run.pure}


def run_from_wire(message: Message) -> ComponentRun:
    return ComponentRun(message["output_json"], message["fuel"], Transcript.from_json(message["transcript"]), message["pure"])


def error_to_wire(error: SandboxError) -> Message:
    match error:
        case ComponentFailed():
            return {
                "class": "ComponentFailed",
                "kind": error.kind,
                "message": error.message,
                "pure": error.pure,
                "fuel": error.fuel,
                "transcript": error.transcript.to_json(),
            }
        case PolicyRejected() | EvaluationFailed():
            return {"class": type(error).__name__, "kind": error.kind, "message": error.message, "fuel": error.fuel}
        case ReplayDiverged():
            return {"class": "ReplayDiverged", "position": error.position, "asked": error.asked, "recorded": error.recorded}
        case ComponentRejected():
            return {"class": "ComponentRejected", "message": str(error)}
        case _:
            return {"class": "SandboxUnavailable", "message": str(error)}


def error_from_wire(message: Message) -> SandboxError:
    match message["class"]:
        case "ComponentFailed":
            transcript = Transcript.from_json(message["transcript"])
            return ComponentFailed(message["kind"], message["message"], pure=message["pure"], fuel=message["fuel"], transcript=transcript)
        case "PolicyRejected":
            return PolicyRejected(message["message"], kind=message["kind"], fuel=message["fuel"])
        case "EvaluationFailed":
            return EvaluationFailed(message["kind"], message["message"], fuel=message["fuel"])
        case "ReplayDiverged":
            return ReplayDiverged(message["position"], message["asked"], message["recorded"])
        case "ComponentRejected":
            return ComponentRejected(message["message"])
        case _:
            return SandboxUnavailable(str(message["message"]))
