"""One worker process: reads a frame, does what it says, answers with a frame, until its input ends.

It is started with an empty environment, so no secret of its parent is in it, and it dies with its parent.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import resource
import signal
import sys
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from placet.sandbox import wire
from placet.sandbox.check import check_policy
from placet.sandbox.errors import SandboxError, SandboxUnavailable
from placet.sandbox.fetch import Fetcher, FetchPolicy
from placet.sandbox.manifest import Manifest
from placet.sandbox.policydata import AdmissionLimits, ComponentEngine, LiveHost
from placet.sandbox.rego import DataSection, PolicySource, RegoEngine
from placet.sandbox.transcript import Transcript

_PR_SET_PDEATHSIG = 1


class _NeedsSource(Exception):
    """The policy is not among the prepared ones: the parent sends its source."""


class _Worker:
    def __init__(self, cache_dir: Path, image_budget_bytes: int) -> None:
        self._rego = RegoEngine(cache_dir=cache_dir / "rego", image_budget_bytes=image_budget_bytes)
        self._components: ComponentEngine | None = None
        self._cache_dir = cache_dir

    def answer(self, message: wire.Message) -> wire.Message:
        match message["do"]:
            case "evaluate":
                policy = self._rego.policy(message["key"], lambda: _source(message))
                data = [DataSection(**section) for section in message["data"]]
                if message["explain"]:
                    return wire.explanation_to_wire(policy.explain(message["input"], data=data, now_ns=message["now_ns"]))
                return wire.evaluation_to_wire(policy.evaluate(message["input"], data=data, now_ns=message["now_ns"]))
            case "check":
                findings = check_policy(self._rego, message["modules"], message["entrypoint"])
                return {"findings": [[f.file, f.line, f.rule, f.message] for f in findings]}
            case "syntax":
                return {"syntax": self._rego.syntax_json(message["modules"])}
            case "admit":
                admitted = self._engine().admit(
                    base64.b64decode(message["component"]), _manifest(message["manifest"]), AdmissionLimits(**message["limits"])
                )
                return {
                    "sha256": admitted.sha256,
                    "world": admitted.world,
                    "imports": list(admitted.imports),
                    "artifact_bytes": admitted.artifact_bytes,
                }
            case "run":
                return self._run(message)
            case _:
                raise SandboxUnavailable("unknown request")

    def _run(self, message: wire.Message) -> wire.Message:
        manifest = _manifest(message["manifest"])
        config = wire.host_from_wire(message["host"])
        fetcher = None
        if config.network:
            fetcher = Fetcher(
                FetchPolicy(
                    manifest.allowed_hosts,
                    private_hosts=config.private_hosts,
                    total_timeout_s=manifest.limits.deadline_ms / 1_000,
                    max_response_bytes=manifest.limits.response_bytes,
                    ca_file=config.ca_file,
                )
            )
        run = self._engine().run(
            message["sha256"],
            manifest,
            wire.request_from_wire(message["request"]),
            LiveHost(fetcher, config.secrets, config.endpoint),
            digest_key=base64.b64decode(message["digest_key"]),
            replay=Transcript.from_json(message["replay"]) if message["replay"] is not None else None,
        )
        return wire.run_to_wire(run)

    def _engine(self) -> ComponentEngine:
        if self._components is None:
            self._components = ComponentEngine(self._cache_dir / "components")
        return self._components


@lru_cache(maxsize=256)
def _manifest(text: str) -> Manifest:
    return Manifest.parse(text.encode())


def _source(message: wire.Message) -> PolicySource:
    if message["source"] is None:
        raise _NeedsSource
    return wire.source_from_wire(message["source"])


def _die_with_parent(parent: int) -> None:
    """The end of the pipe ends the loop; this also ends a worker that is busy when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _read(stream: BinaryIO) -> wire.Message | None:
    header = stream.read(4)
    if len(header) < 4:
        return None
    size = int.from_bytes(header, "big")
    body = stream.read(size)
    if len(body) < size:
        return None
    message: wire.Message = json.loads(body)
    return message


def main(arguments: list[str]) -> None:
    """Arguments: parent's process id, cache folder, byte budget for images."""
    _die_with_parent(int(arguments[0]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal is the parent's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but frames goes to the parent
    try:
        worker = _Worker(Path(arguments[1]), int(arguments[2]))
    except SandboxError as error:
        _say(answers, {"error": wire.error_to_wire(error)})
        return
    _say(answers, {"ok": "ready"})
    while (message := _read(requests)) is not None:
        try:
            reply: wire.Message = {"ok": worker.answer(message)}
        except _NeedsSource:
            reply = {"needs": "source"}
        except SandboxError as error:
            reply = {"error": wire.error_to_wire(error)}
        except Exception as error:  # noqa: BLE001 (whatever went wrong here, it is this machine's trouble)
            reply = {"error": wire.error_to_wire(SandboxUnavailable(f"{type(error).__name__} in the worker: {error}"))}
        _say(answers, reply)


def _say(answers: BinaryIO, message: wire.Message) -> None:
    answers.write(wire.pack(message))
    answers.flush()
