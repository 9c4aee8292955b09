"""`placet models` as a publisher uses it, against a real gateway and hub."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from placet.core.errors import Conflict, Forbidden, InvalidInput, PlacetError
from placet.sdk.cli.models import models
from placet.sdk.cli.verify import verify
from tests.e2e.inference.conftest import Town
from tests.e2e.inference.test_tensors import ask
from tests.support import onnx_files
from tests.support.authorization import eventually


class Shell:
    """Runs the command off the loop on which the services run."""

    def __init__(self, town: Town, key: Path) -> None:
        self.gateway = ["--gateway", town.network.gateway_url, "--api-key", town.network.api_key]
        self.key = ["--key-file", str(key)]

    async def text(self, *arguments: str, signed: bool = False) -> str:
        given = [*arguments, *self.gateway, *(self.key if signed else [])]
        result = await asyncio.to_thread(CliRunner().invoke, models, given)
        if isinstance(result.exception, PlacetError):
            raise result.exception
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result.output

    async def json(self, *arguments: str, signed: bool = False) -> Any:
        return json.loads(await self.text(*arguments, "--output", "json", signed=signed))


async def test_a_model_s_life_from_the_command_line(town: Town) -> None:
    key = town.file("bob.key", b"22" * 32)
    bob, mallory = Shell(town, key), Shell(town, town.file("mallory.key", b"33" * 32))
    await bob.text("claim", "bob", signed=True)
    with pytest.raises(Conflict):
        await mallory.text("claim", "bob", signed=True)
    first, second = town.file("v1.onnx", onnx_files.linear()), town.file("v2.onnx", onnx_files.linear(scale=3.0))
    for path in (first, second):
        done = await bob.json("publish", "bob/m", str(path), "--alias", "prod", "--description", "Says how large", signed=True)
    assert done["manifest"]["version"] == 2
    with pytest.raises(Forbidden):
        await mallory.text("publish", "bob/m", str(first), signed=True)
    with pytest.raises(InvalidInput, match="custom operators are not run"):
        await bob.text("publish", "bob/m", str(town.file("evil.onnx", onnx_files.custom_operator())), signed=True)

    shown = await bob.text("show", "bob/m")
    assert "version 2" in shown
    assert "input   x: FP32[-1, 4]" in shown
    assert [item["name"] for item in (await bob.json("list", "--search", "large"))["models"]] == ["bob/m"]
    assert (await bob.text("rollback", "bob/m", signed=True)).strip() == "bob/m@prod → 1 (was 2)"
    assert [(move["version"], move["previous"]) for move in (await bob.json("history", "bob/m"))["moves"]] == [(1, 2), (2, 1), (1, None)]
    await bob.text("deprecate", "bob/m", "1", "--reason", "use 2", signed=True)
    with pytest.raises(Conflict, match="in use"):
        await bob.text("delete", "bob/m", "1", signed=True)
    await bob.text("delete", "bob/m", "2", signed=True)

    rows = np.ones((5, 4), np.float32)
    answer = await asyncio.to_thread(ask, town, rows, model="bob/m")
    assert json.loads(answer.get_response()["parameters"]["placet_routing"])["deprecated"] == "use 2"

    async def used() -> Any:
        return (await bob.json("revenue", "bob/m"))["usage"]

    (usage,) = await eventually(used)
    assert (usage["version"], usage["requests"], usage["rows"], usage["revenue"]) == (1, 1, 5, "0")
    terms = ["--network", "eip155:31337", "--asset", "0x" + "aa" * 20, "--pay-to", "0x" + "bb" * 20, "--request", "1000"]
    await bob.text("price", "bob/m", *terms, signed=True)
    assert "1000 a request" in await bob.text("list")


async def test_a_receipt_is_checked_from_the_command_line(town: Town) -> None:
    await town.linear()
    answer = await asyncio.to_thread(ask, town, np.ones((1, 4), np.float32))
    receipt = json.loads(answer.get_response()["parameters"]["placet_receipt"])
    nodes = (await town.client.request("GET", "/api/v1/nodes"))[1]["nodes"]
    (key,) = [node["receiptKey"] for node in nodes if node["keyId"] == receipt["keyId"]]
    file = town.file("receipt.json", json.dumps(receipt).encode())
    sound = CliRunner().invoke(verify, [str(file), "--key", key])
    assert (sound.exit_code, sound.output.splitlines()[-1]) == (0, "verified"), sound.output
    other = CliRunner().invoke(verify, [str(file), "--key", "0x" + "11" * 32])
    assert (other.exit_code, "FAIL  1 key" in other.output) == (1, True), other.output
    forged = town.file("forged.json", json.dumps({**receipt, "usage": {**receipt["usage"], "rows": 2}}).encode())
    assert "FAIL  2 signature" in CliRunner().invoke(verify, [str(forged), "--key", key]).output
    assert "--key 0x… is needed" in str(CliRunner().invoke(verify, [str(file)]).exception)
