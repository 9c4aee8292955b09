"""What a proof costs: `python -m bench.proofs`. Each in a process like the service's; a 265,000-weight network, and two small ones."""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from placet.inference.proofs.network import constraints_of
from placet.inference.proofs.prover import read_network
from placet.inference.proofs.system import Groth16System
from placet.verify.zk.field import ORDER
from placet.verify.zk.groth16 import Proof, VerifyingKey, check
from tests.support.zk import network_model, saved

NETWORKS = {"4-16-3": (4, 16, 3), "64-64-32-10": (64, 64, 32, 10), "256-512-256-10": (256, 512, 256, 10)}


async def measure(name: str, sizes: tuple[int, ...]) -> None:
    with tempfile.TemporaryDirectory(prefix="placet-bench-") as scratch:
        folder = Path(scratch)
        model, pk, vk = saved(network_model(sizes), folder / "model.onnx"), folder / "pk", folder / "vk"
        system = Groth16System(folder / "work", memory_bytes=8 << 30, timeout_s=600)
        network = read_network(model)
        inputs = [int(value) for value in network.quantise(np.random.default_rng(1).normal(size=sizes[0]).astype(np.float32))]
        try:
            started = time.perf_counter()
            await system.setup(model, pk, vk)
            setup_s = time.perf_counter() - started
            started = time.perf_counter()
            await system.prove(model, pk, vk, inputs)
            first_s = time.perf_counter() - started
            started = time.perf_counter()
            proof, outputs = await system.prove(model, pk, vk, inputs)
            prove_s = time.perf_counter() - started
        finally:
            await system.close()
        started = time.perf_counter()
        check(VerifyingKey.from_bytes(vk.read_bytes()), [value % ORDER for value in (*inputs, *outputs)], Proof.from_bytes(proof))
        verify_s = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
        sys.stdout.write(
            f"{name:<16} {sum(layer.weights.size for layer in network.layers):>8} weights {constraints_of(network):>6} constraints  "
            f"setup {setup_s:6.1f} s  first {first_s:6.1f} s  proof {prove_s:5.2f} s  verified in {1000 * verify_s:5.1f} ms  "
            f"keys {pk.stat().st_size / 1e6:.1f} MB + {vk.stat().st_size / 1e3:.1f} kB  child at most {peak} MiB\n"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(NETWORKS), action="append")
    for name in parser.parse_args().only or NETWORKS:
        asyncio.run(measure(name, NETWORKS[name]))


if __name__ == "__main__":
    main()
