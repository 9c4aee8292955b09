"""What an intent costs, against the floor it cannot go below: measured in one run, so the ratios mean something on any machine.

The floor is the work that no arrangement can avoid for one intent and four operators, one after another on one core: four Rego
evaluations, four BLS signatures, four verifications, one aggregate verification, and two round trips to the node.
Run `python bench/authorization.py [--intents N]`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson

from placet.core import bls
from placet.core.types import Address, hex0x
from placet.sandbox.rego import DataSection, PolicySource, RegoEngine
from placet.sdk.cli.common import cache_folder
from placet.sdk.client import Client
from placet.sdk.devservices.process import repository
from placet.sdk.local.network import LocalNetwork, LocalOptions
from placet.sdk.packs import load_pack

WITHDRAW = "withdraw(uint256,address,address)"


def median_ms(action: Callable[[], Any], times: int) -> float:
    """Median wall time of an action, milliseconds."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


async def median_ms_async(action: Callable[[], Awaitable[Any]], times: int) -> float:
    """Median wall time of an awaitable action, milliseconds."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        await action()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def floor_parts() -> dict[str, float]:
    """Milliseconds of each unavoidable part, once."""
    pack = load_pack(repository() / "policies" / "spend-limit").bundle.policy
    engine = RegoEngine(cache_dir=cache_folder())
    source = PolicySource(
        {module.name: module.source.decode() for module in pack.modules}, pack.entrypoint, (DataSection("params", pack.params.decode()),)
    )
    compiled = engine.prepare(source)
    document = orjson.dumps({"function": {"name": "withdraw"}, "arguments": ["500", hex0x(bytes(20)), hex0x(bytes(20))]}).decode()
    data = (DataSection("args", "{}"), DataSection("task", '{"sequence":0}'))
    secrets = [(number + 1).to_bytes(32, "big") for number in range(4)]
    keys, digest = [bls.public_key(secret) for secret in secrets], b"\1" * 32
    signatures = [bls.sign(secret, digest) for secret in secrets]
    total = bls.aggregate(signatures)
    return {
        "rego": median_ms(lambda: compiled.evaluate(document, data=data), 200),
        "bls_sign": median_ms(lambda: bls.sign(secrets[0], digest), 50),
        "bls_verify": median_ms(lambda: bls.verify(keys[0], digest, signatures[0]), 50),
        "bls_aggregate_verify": median_ms(lambda: bls.fast_aggregate_verify(keys, digest, total), 50),
    }


async def ask(client: Client, vault: Address, sender: Address) -> float:
    """Submit one withdrawal; wall seconds from submission to the certificate."""
    call = {"from": hex0x(sender), "functionSignature": WITHDRAW, "arguments": ["500", hex0x(sender), hex0x(sender)]}
    prepared = await client.prepare(hex0x(vault), call)
    started = time.perf_counter()
    answer = await client.submit(hex0x(vault), prepared["intent"])
    if answer["decision"] != "allow":
        raise SystemExit(f"the benchmark's intent was refused: {answer['reasons']}")
    return time.perf_counter() - started


async def measure(intents: int) -> dict[str, Any]:
    """One run."""
    parts = floor_parts()
    with tempfile.TemporaryDirectory(prefix="placet-bench-") as folder:
        async with LocalNetwork(LocalOptions(Path(folder) / "net", compiled_cache=cache_folder())) as network:
            params = {"max_amount": "1000", "max_count": 10**6, "blocked": []}
            bundle = load_pack(repository() / "policies" / "spend-limit", params=params).bundle
            await network.publish(bundle)
            token = await network.chain.deploy(network.owner, "TestToken", "Bench", "BNC", 18)
            config = network.client_config(bundle.id)
            vault = await network.chain.deploy(network.owner, "GuardedVault", token, "Vault", "vBNC", config)
            parts["node_round_trip"] = await median_ms_async(lambda: network.rpc.block("latest"), 50)
            async with network.client() as client:
                await ask(client, vault, network.accounts[3])
                alone = sorted([await ask(client, vault, network.accounts[3]) for _ in range(intents)])
                cpu, started = time.process_time(), time.perf_counter()
                together = sorted(await asyncio.gather(*(ask(client, vault, network.accounts[3]) for _ in range(2 * intents))))
                wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    floor = 4 * (parts["rego"] + parts["bls_sign"] + parts["bls_verify"]) + parts["bls_aggregate_verify"] + 2 * parts["node_round_trip"]
    p50 = 1000 * alone[len(alone) // 2]
    return {
        "floor_parts_ms": {name: round(value, 3) for name, value in parts.items()},
        "floor_ms": round(floor, 1),
        "alone_p50_ms": round(p50, 1),
        "alone_p99_ms": round(1000 * alone[int(len(alone) * 0.99)], 1),
        "alone_over_floor": round(p50 / floor, 2),
        "together_intents": len(together),
        "together_per_s": round(len(together) / wall, 1),
        "together_p50_ms": round(1000 * together[len(together) // 2], 1),
        "together_cpu_ms_per_intent": round(1000 * cpu / len(together), 1),
        "together_cpu_over_floor": round(1000 * cpu / len(together) / floor, 2),
    }


def main() -> None:
    """Print the measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--intents", type=int, default=50)
    result = asyncio.run(measure(parser.parse_args().intents))
    sys.stdout.write(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode() + "\n")


if __name__ == "__main__":
    main()
