"""What the ONNX engine adds to onnxruntime: `session.run` in a loop against OnnxEngine, in one process, turn by turn.

Run `python -m bench.inference_engine [--seconds S] [--rounds N]`. Ratios are to raw runs of one row in one thread, of the same round.
"""

from __future__ import annotations

import argparse
import asyncio
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

from placet.inference.engines.base import Tensor
from placet.inference.engines.onnx import OnnxEngine, load_onnx
from tests.support import models

CONCURRENCY = (1, 8, 32)


def raw(session: Any, rows: int, seconds: float) -> float:
    """Rows a second of onnxruntime alone."""
    feed = {"x": np.random.default_rng(0).standard_normal((rows, 256)).astype(np.float32)}
    runs, ends, started = 0, time.perf_counter() + seconds, time.perf_counter()
    while time.perf_counter() < ends:
        session.run(["y"], feed)
        runs += 1
    return runs * rows / (time.perf_counter() - started)


async def through(engine: OnnxEngine, concurrency: int, seconds: float) -> dict[str, float]:
    """Requests of one row a second through the engine, milliseconds at the median and the 99th percentile, and rows a run."""
    loop = asyncio.get_running_loop()
    request = [Tensor("x", "FP32", (1, 256), np.random.default_rng(0).standard_normal((1, 256)).astype("<f4").tobytes())]
    took: list[float] = []
    shared: list[int] = []
    ends = time.perf_counter() + seconds

    async def caller() -> None:
        while (now := time.perf_counter()) < ends:
            result = await engine.infer(request, [], deadline=loop.time() + 10)
            took.append(time.perf_counter() - now)
            shared.append(result.batch_rows)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    elapsed = time.perf_counter() - started
    at = statistics.quantiles(took, n=100)
    return {"per_s": len(took) / elapsed, "p50_ms": at[49] * 1_000, "p99_ms": at[98] * 1_000, "rows_a_run": statistics.fmean(shared)}


async def measure(seconds: float, rounds: int) -> dict[str, Any]:
    """The best of several rounds; ratios are medians over rounds."""
    with tempfile.TemporaryDirectory(prefix="placet-bench-") as folder:
        path = models.mlp(Path(folder))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        engines = {"batching": load_onnx(path), "alone": load_onnx(path, batch=False)}
        found: dict[str, list[dict[str, float]]] = {}
        floors: dict[int, list[float]] = {rows: [] for rows in (1, 8, 32)}
        for _ in range(rounds):
            for rows, values in floors.items():
                values.append(raw(session, rows, seconds / 2))
            for name, engine in engines.items():
                for concurrency in CONCURRENCY:
                    one = await through(engine, concurrency, seconds)
                    found.setdefault(f"{name} c={concurrency}", []).append({**one, "to_raw": one["per_s"] / floors[1][-1]})
        for engine in engines.values():
            await engine.close()
    out: dict[str, Any] = {
        "model": "MLP 256-512-256-10, requests of one row",
        "decision": engines["batching"].batching.why,
        "raw_rows_per_s": {str(rows): round(max(values)) for rows, values in floors.items()},
    }
    for name, measured in found.items():
        best = max(measured, key=lambda one: one["per_s"])
        out[name] = {
            "per_s": round(best["per_s"]),
            "p50_ms": round(best["p50_ms"], 3),
            "p99_ms": round(best["p99_ms"], 3),
            "rows_a_run": round(best["rows_a_run"], 1),
            "to_raw": round(statistics.median(one["to_raw"] for one in measured), 3),
        }
    return out


def main() -> None:
    """Print the measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    result = uvloop.run(measure(asked.seconds, asked.rounds))
    sys.stdout.write(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode() + "\n")


if __name__ == "__main__":
    main()
