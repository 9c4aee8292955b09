"""Signing with the BLS key: the interface, and the client of the process that holds it (`signer`)."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, Protocol

import orjson

from placet.core.errors import Unavailable
from placet.core.types import Address, Certificate, Hash32, hex0x

_TIMEOUT_S = 10.0
_START_TIMEOUT_S = 60.0


class BlsSigner(Protocol):
    """Signs certificates with an operator's BLS key. A protocol, so that a remote signer or an HSM can stand behind it."""

    async def sign_certificate(self, certificate: Certificate, chain_id: int, validator: Address) -> bytes:
        """BLS signature (96 bytes) over the certificate's digest."""


class ProcessSigner:
    """A signer in a child process of its own, started again when it dies."""

    def __init__(self, keystore: Path, password_file: Path) -> None:
        self._command = [sys.executable, "-I", "-m", "placet.operator.signer", str(keystore), str(password_file)]
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Start the process and unlock the key. Raises Unavailable with the reason when the key does not open."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={}, limit=1 << 16
        )
        first = await self._read(self._process, _START_TIMEOUT_S)
        if "ready" not in first:
            await self.stop()
            raise Unavailable(f"BLS signer: {first.get('error', 'did not start')}")

    async def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    @staticmethod
    async def _read(process: asyncio.subprocess.Process, timeout_s: float) -> dict[str, Any]:
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), timeout_s)
        except TimeoutError:
            raise Unavailable("BLS signer: no answer") from None
        if not line:
            raise Unavailable("BLS signer: the process ended")
        reply: dict[str, Any] = orjson.loads(line)
        return reply

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        async with self._turn:
            if self._process is None or self._process.returncode is not None:
                await self.start()
            process = self._process
            assert process is not None
            assert process.stdin is not None
            try:
                process.stdin.write(orjson.dumps(request) + b"\n")
                await process.stdin.drain()
                reply = await self._read(process, _TIMEOUT_S)
            except (Unavailable, OSError, asyncio.CancelledError):
                await self.stop()  # an answer may still be on its way: it must not be taken for the next one's
                raise
        if "error" in reply:
            raise Unavailable(f"BLS signer: {reply['error']}")
        return reply

    async def public_key(self) -> bytes:
        """The compressed public key, 48 bytes."""
        return bytes.fromhex((await self._ask({"kind": "key"}))["publicKey"])

    async def prove_possession(self) -> bytes:
        """Proof of possession, 96 bytes."""
        return bytes.fromhex((await self._ask({"kind": "possession"}))["signature"])

    async def sign_registration(self, operator: Address, bus_key: Hash32, chain_id: int, registry: Address) -> bytes:
        """Binding signature over RegisterKey, 96 bytes."""
        request = {
            "kind": "register",
            "operator": hex0x(operator),
            "busKey": hex0x(bus_key),
            "chainId": chain_id,
            "registry": hex0x(registry),
        }
        return bytes.fromhex((await self._ask(request))["signature"])

    async def sign_certificate(self, certificate: Certificate, chain_id: int, validator: Address) -> bytes:
        """BLS signature (96 bytes) over the certificate's digest."""
        request = {
            "kind": "certificate",
            "root": hex0x(certificate.root),
            "count": certificate.count,
            "epoch": certificate.epoch,
            "timestamp": certificate.timestamp,
            "chainId": chain_id,
            "validator": hex0x(validator),
        }
        return bytes.fromhex((await self._ask(request))["signature"])
