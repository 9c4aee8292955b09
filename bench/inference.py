"""What serving costs: onnxruntime alone, the replica over HTTP without and with receipts, and the gateway; one model, one run, ratios.

The model has 265k parameters (256-512-256-10); a request is one row of 256 floats as Open Inference V2 JSON. The services run in one child
process, the load in this one, so both share the machine's processors, as the peers' figures in the facts did.
Run `python -m bench.inference [--seconds S]`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson
import uvloop

from tests.support import models

CONCURRENCY = (1, 8, 32)


async def serve(folder: Path) -> None:
    """The child: a network with one replica; one line of JSON when the model is warm, then until stdin ends."""
    from placet.sdk.hub import Publisher, PublisherKey
    from placet.sdk.local.network import LocalNetwork, LocalOptions

    options = LocalOptions(folder / "net", operators=1, inference=1, inference_overrides={"runs_per_model": 1})
    async with LocalNetwork(options) as network, network.client() as client:
        publisher = Publisher(client, "placet:31337", "bench", PublisherKey(b"\x11" * 32))
        await publisher.claim()
        version = (await publisher.publish("mlp", {"model.onnx": models.mlp(folder)})).version
        await publisher.move("mlp", "prod", version)
        inside = network.inside("inference-0")
        gateway = int(network.gateway_url.rpartition(":")[2])
        line = {"replica": inside.http_port, "gateway": gateway, "key": network.api_key, "pid": os.getpid()}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.read()


class Caller(asyncio.Protocol):
    """One connection that sends the same request again and again."""

    def __init__(self, request: bytes, ends: float, took: list[float]) -> None:
        self._request = request
        self._ends = ends
        self._took = took
        self._buffer = b""
        self._sent_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lowered = head.lower()
        at = lowered.index(b"content-length:") + 15
        length = int(lowered[at : lowered.find(b"\r\n", at) if lowered.find(b"\r\n", at) > 0 else None])
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self._buffer[:300].decode(errors="replace")))
            self._transport.close()
            return
        self._buffer = b""
        now = time.perf_counter()
        self._took.append(now - self._sent_at)
        if now < self._ends:
            self._send()
        else:
            self._transport.close()
            self.done.set_result(None)


def cpu_s(pid: int) -> float:
    """CPU seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(port: int, pid: int, headers: dict[str, str], concurrency: int, seconds: float) -> dict[str, float]:
    """Requests a second, latencies, and CPU of the services a request."""
    row = np.random.default_rng(0).standard_normal(256).astype(np.float32)
    body = orjson.dumps({"inputs": [{"name": "x", "shape": [1, 256], "datatype": "FP32", "data": row.tolist()}]})
    lines = ["POST /v2/models/bench/mlp/infer HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
    request = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items())]).encode() + b"\r\n\r\n" + body
    loop, took = asyncio.get_running_loop(), list[float]()
    used, started = cpu_s(pid), time.perf_counter()
    callers = [
        (await loop.create_connection(lambda: Caller(request, started + seconds, took), "127.0.0.1", port))[1] for _ in range(concurrency)
    ]
    await asyncio.gather(*(caller.done for caller in callers))
    elapsed, used = time.perf_counter() - started, cpu_s(pid) - used
    at = statistics.quantiles(took, n=100)
    return {
        "per_s": round(len(took) / elapsed),
        "p50_ms": round(1000 * at[49], 2),
        "p99_ms": round(1000 * at[98], 2),
        "cpu_us": round(1e6 * used / len(took)),
    }


def raw_per_s(path: Path, seconds: float) -> float:
    """Runs a second of onnxruntime alone, one row, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 256)).astype(np.float32)}
    runs, started = 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        session.run(None, feed)
        runs += 1
    return runs / (time.perf_counter() - started)


async def measure(seconds: float) -> dict[str, Any]:
    """One run."""
    with tempfile.TemporaryDirectory(prefix="placet-bench-") as name:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.inference", "--serve", name, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert child.stdout is not None
            said = json.loads(await child.stdout.readline())
            ways: dict[str, tuple[int, dict[str, str]]] = {
                "replica": (said["replica"], {}),
                "replica with receipts": (said["replica"], {"placet-receipt": "true"}),
                "gateway (receipts)": (said["gateway"], {"authorization": f"Bearer {said['key']}"}),
            }
            for port, headers in ways.values():  # warm
                await load(port, said["pid"], headers, 2, 0.5)
            raw = raw_per_s(next(Path(name).glob("*.onnx")), seconds)
            out: dict[str, Any] = {"raw_per_s": round(raw)}
            for way, (port, headers) in ways.items():
                for concurrency in CONCURRENCY:
                    found = await load(port, said["pid"], headers, concurrency, seconds)
                    out[f"{way}, c={concurrency}"] = {**found, "to_raw": round(found["per_s"] / raw, 3)}
            return out
        finally:
            with contextlib.suppress(ProcessLookupError):
                assert child.stdin is not None
                child.stdin.close()
                await asyncio.wait_for(child.wait(), 30)


def main() -> None:
    """Print the measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        uvloop.run(serve(arguments.serve))
        return
    sys.stdout.write(orjson.dumps(uvloop.run(measure(arguments.seconds)), option=orjson.OPT_INDENT_2).decode() + "\n")


if __name__ == "__main__":
    main()
