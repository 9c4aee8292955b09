"""Proof systems, and the process in which the built-in one works."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from placet.core.errors import Unavailable, VerificationFailed
from placet.verify.zk.statement import SYSTEM

_LINE_BYTES = 8 << 20
_ENDS_WITHIN_S = 5.0


class ProofSystem(Protocol):
    """Makes keys and proofs for the network of a model's file. Files are given by name; nothing heavy runs in the caller's process."""

    name: str

    async def setup(self, model: Path, pk: Path, vk: Path) -> bytes:
        """Write new keys; returns the network's sha-256.

        Raises:
            VerificationFailed: the model's network cannot be proven. Unavailable: it did not come to an end.
        """

    async def prove(self, model: Path, pk: Path, vk: Path, inputs: Sequence[int]) -> tuple[bytes, list[int]]:
        """A verified proof, and the outputs.

        Raises:
            VerificationFailed: keys and model do not go together. Unavailable: it did not come to an end.
        """

    async def close(self) -> None:
        """End the process."""


class Groth16System:
    """`placet.inference.proofs.prover` in a child process: one job at a time, with limits on memory and time; killed beyond them."""

    name = SYSTEM

    def __init__(self, scratch: Path, *, memory_bytes: int, timeout_s: float) -> None:
        self._scratch = scratch
        self._memory_bytes = memory_bytes
        self._timeout_s = timeout_s
        self._child: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def setup(self, model: Path, pk: Path, vk: Path) -> bytes:
        """See ProofSystem."""
        answer = await self._ask({"do": "setup", "model": str(model), "pk": str(pk), "vk": str(vk)})
        return bytes.fromhex(answer["network"])

    async def prove(self, model: Path, pk: Path, vk: Path, inputs: Sequence[int]) -> tuple[bytes, list[int]]:
        """See ProofSystem."""
        job = {"do": "prove", "model": str(model), "pk": str(pk), "vk": str(vk), "key": str(pk), "inputs": list(inputs)}
        answer = await self._ask(job)
        return bytes.fromhex(answer["proof"]), [int(value) for value in answer["outputs"]]

    async def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        async with self._turn:
            child = await self._living()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                async with asyncio.timeout(self._timeout_s):
                    child.stdin.write(json.dumps(job).encode() + b"\n")
                    await child.stdin.drain()
                    answer = json.loads(await child.stdout.readuntil(b"\n"))
            except TimeoutError:
                await self._kill()
                raise Unavailable(f"no proof within {self._timeout_s:.0f} s") from None
            except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                await self._kill()
                raise Unavailable(f"the prover ended ({type(error).__name__})") from None
            except asyncio.CancelledError:
                await self._kill()
                raise
        if "refused" in answer:
            raise VerificationFailed(str(answer["refused"])[:500], field="zkml")
        if "failed" in answer:
            raise Unavailable(f"prover: {answer['failed']}"[:500])
        return dict(answer)

    async def _living(self) -> asyncio.subprocess.Process:
        if self._child is None or self._child.returncode is not None:
            await asyncio.to_thread(self._scratch.mkdir, parents=True, exist_ok=True)
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                "import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); from placet.inference.proofs.prover import main; main()",
                json.dumps(sys.path),
                str(self._scratch),
                str(self._memory_bytes),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={"LANG": "C.UTF-8", "HOME": str(self._scratch), "PATH": os.defpath},
                limit=_LINE_BYTES,
                start_new_session=True,
            )
        return self._child

    async def _kill(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.stdin is not None:
            child.stdin.close()
        with suppress(ProcessLookupError):
            child.kill()
        with suppress(TimeoutError):
            async with asyncio.timeout(_ENDS_WITHIN_S):
                await child.wait()

    async def close(self) -> None:
        """See ProofSystem."""
        await self._kill()
