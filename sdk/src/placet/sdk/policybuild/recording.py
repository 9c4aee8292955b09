"""A recorded simulation: one task, what each component asked and was told, and what came of it.

A recording is a test: replayed, a component must ask the same, answer the same, and the policy must decide the same. Packs keep theirs
under recordings/.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placet.core import jsonx
from placet.core.errors import InvalidInput
from placet.core.intents import intent_json
from placet.core.types import Address, Hash32, Intent, address_from, hash_from, hex0x
from placet.sandbox.jsonguard import JsonRejected
from placet.sandbox.transcript import Transcript
from placet.sdk.policybuild.intents import read_intent

MAX_RECORDING_BYTES = 16 << 20
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Situation:
    """When and where a task is judged. `sequence` is the client's counter; `timestamp` in unix seconds."""

    timestamp: int
    block_number: int
    block_hash: Hash32
    chain_id: int
    policy_client: Address
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """One component's run. `component` is its sha256: fuel is a function of its bytes, output need not be."""

    component: str
    transcript: Transcript
    output: Any
    fuel: int


@dataclass(frozen=True, slots=True)
class Recording:
    """`params` are those it was made with, `args` the caller's arguments."""

    situation: Situation
    intent: Intent
    args: dict[str, Any]
    params: dict[str, Any]
    runs: tuple[RecordedRun, ...]
    allow: bool
    reasons: tuple[str, ...]

    def to_json(self) -> bytes:
        """Canonical, so that a recording made twice is the same file."""
        situation = self.situation
        return jsonx.canonical(
            {
                "version": _VERSION,
                "task": {
                    "timestamp": situation.timestamp,
                    "blockNumber": situation.block_number,
                    "blockHash": hex0x(situation.block_hash),
                    "chainId": situation.chain_id,
                    "policyClient": hex0x(situation.policy_client),
                    "sequence": situation.sequence,
                },
                "intent": intent_json(self.intent),
                "args": self.args,
                "params": self.params,
                "policyData": [
                    {
                        "component": run.component,
                        "transcript": [[entry.function, entry.request, entry.answer] for entry in run.transcript.entries],
                        "output": run.output,
                        "fuel": run.fuel,
                    }
                    for run in self.runs
                ],
                "decision": {"allow": self.allow, "reasons": list(self.reasons)},
            }
        )


def read_recording(path: Path) -> Recording:
    """A recording from its file.

    Raises:
        InvalidInput: it is none; the text names the file.
    """
    try:
        document = jsonx.parse(path.read_bytes(), field=path.name, max_bytes=MAX_RECORDING_BYTES, fractions=True)
        if document["version"] != _VERSION:
            raise InvalidInput(f"{path.name}: version {document['version']}, {_VERSION} wanted", field="version")
        task = document["task"]
        situation = Situation(
            timestamp=int(task["timestamp"]),
            block_number=int(task["blockNumber"]),
            block_hash=hash_from(task["blockHash"], field="blockHash"),
            chain_id=int(task["chainId"]),
            policy_client=address_from(task["policyClient"], field="policyClient"),
            sequence=int(task["sequence"]),
        )
        runs = tuple(
            RecordedRun(
                str(run["component"]),
                Transcript.from_json(jsonx.canonical(run["transcript"]).decode()),
                run["output"],
                int(run["fuel"]),
            )
            for run in document["policyData"]
        )
        intent = read_intent(jsonx.canonical(document["intent"]), chain_id=situation.chain_id, deadline=0)
        decision = document["decision"]
        return Recording(
            situation,
            intent,
            dict(document["args"]),
            dict(document["params"]),
            runs,
            bool(decision["allow"]),
            tuple(str(reason) for reason in decision["reasons"]),
        )
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", field="recorded") from None
    except (KeyError, TypeError, ValueError, JsonRejected) as error:
        raise InvalidInput(f"{path.name} is no recording: {type(error).__name__}: {error}", field="recorded") from None
