"""The gas-price component, run for real against a price server on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from placet.sandbox.errors import SandboxUnavailable
from placet.sandbox.policydata import ComponentEngine, ComponentFailed
from placet.sdk.policybuild.simulate import Simulator
from tests.contract.packs.conftest import Bench, Server, bench

ASK = '{"jsonrpc":"2.0","id":1,"method":"eth_gasPrice","params":[]}'


@pytest.fixture
def price(simulator: Simulator) -> Bench:
    return bench(simulator, "gas-price")


def arguments(server: Server, pointer: str = "/result", body: str = "") -> dict[str, Any]:
    return {"url": server.url("/price"), "body": body, "pointer": pointer}


def wei(run: Any) -> int:
    value: int = json.loads(run.output_json)["gas_price"]["wei"]
    return value


@pytest.mark.parametrize(
    ("document", "pointer", "expected"),
    [
        ({"result": "0x12a05f200"}, "/result", 5_000_000_000),
        ({"result": 5_000_000_000}, "/result", 5_000_000_000),
        ({"result": "5000000000"}, "/result", 5_000_000_000),
        ({"a/b": [0, {"~": 7}]}, "/a~1b/1/~0", 7),
        (3, "", 3),
        ({"result": 2**128 - 1}, "/result", 2**128 - 1),
    ],
)
def test_a_price_is_found_in_every_form_that_is_exact(price: Bench, server: Server, document: Any, pointer: str, expected: int) -> None:
    server.says(document)
    assert wei(price.run(arguments(server, pointer), server=server)) == expected


def test_with_a_body_it_posts_json(price: Bench, server: Server) -> None:
    server.says({"result": "0x1"})
    assert wei(price.run(arguments(server, body=ASK), server=server)) == 1
    assert server.asked == [("POST", "/price", ASK.encode())]


def test_two_engines_give_the_same_output_and_the_same_fuel(price: Bench, server: Server, compiled: Path) -> None:
    server.says({"result": "0x12a05f200"})
    other = ComponentEngine(compiled / "components")
    try:
        runs = [price.run(arguments(server), server=server, engine=engine) for engine in (price.engine, other, price.engine)]
    finally:
        other.close()
    assert len({(run.output_json, run.fuel) for run in runs}) == 1


def test_a_recorded_run_is_replayed_without_a_network(price: Bench, server: Server) -> None:
    server.says({"result": 77})
    run = price.run(arguments(server), server=server)
    server.says({"result": 78})
    again = price.run(arguments(server), server=server, replay=run.transcript)
    assert (again.output_json, again.fuel) == (run.output_json, run.fuel)
    assert wei(again) == 77


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b'{"result": 1.5}', "no price in wei"),
        (b'{"result": -1}', "no price in wei"),
        (b'{"result": true}', "no price in wei"),
        (b'{"result": "0x"}', "no price in wei"),
        (b'{"result": "12 gwei"}', "no price in wei"),
        (b'{"result": "' + "٣".encode() + b'"}', "no price in wei"),
        (json.dumps({"result": 2**128}).encode(), "no price in wei"),
        (b'{"result": null}', "no price in wei"),
        (b'{"error": {"code": -32005}}', "nothing at /result"),
        (b"<html>", "not JSON"),
        (b"[" * 50_000, "nested too deeply"),
    ],
)
def test_what_is_no_price_is_an_error(price: Bench, server: Server, said: bytes, told: str) -> None:
    server.says(said)
    with pytest.raises(ComponentFailed, match=told) as caught:
        price.run(arguments(server), server=server)
    assert (caught.value.kind, caught.value.pure) == ("error", False)


def test_an_error_status_is_an_error_of_the_component(price: Bench, server: Server) -> None:
    server.says({}, status=429)
    with pytest.raises(ComponentFailed, match="answered 429"):
        price.run(arguments(server), server=server)


def test_an_answer_that_is_too_large_makes_the_operator_abstain(price: Bench, server: Server) -> None:
    server.says(b'"' + b"1" * 70_000 + b'"')
    with pytest.raises(SandboxUnavailable, match="more than 65536 bytes"):
        price.run(arguments(server), server=server)


def test_a_server_that_drips_makes_the_operator_abstain_in_time(price: Bench, server: Server) -> None:
    server.says({"result": 1}, drip_s=0.3)
    with pytest.raises(SandboxUnavailable, match="in time"):
        price.run(arguments(server), server=server, limits={"deadline_ms": 800})


def test_a_redirect_to_another_host_is_refused(price: Bench, server: Server) -> None:
    server.says(b"", status=302, headers={"location": "http://169.254.169.254/latest"})
    with pytest.raises(ComponentFailed, match="denied"):
        price.run(arguments(server), server=server)
