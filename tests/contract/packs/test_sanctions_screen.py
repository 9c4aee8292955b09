"""The sanctions-screen component, run for real against a list server on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from placet.sandbox.errors import SandboxUnavailable
from placet.sandbox.policydata import ComponentEngine, ComponentFailed, ReplayDiverged
from placet.sdk.policybuild.simulate import Simulator
from tests.contract.packs.conftest import Bench, Server, bench

MALLORY, ALICE, BOB = "0x" + "ba" * 20, "0x" + "a1" * 20, "0x" + "b0" * 20


@pytest.fixture
def screen(simulator: Simulator) -> Bench:
    return bench(simulator, "sanctions-screen")


def arguments(server: Server, receiver: str = MALLORY, sender: str = ALICE) -> dict[str, Any]:
    return {"list_url": server.url("/list"), "receiver": receiver, "sender": sender}


def output(run: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run.output_json)["sanctions"]
    return document


@pytest.mark.parametrize(
    "listing",
    [
        json.dumps([MALLORY.upper().replace("0X", "0x"), BOB]),
        json.dumps({"addresses": [MALLORY, BOB], "published": "2026-11-01"}),
        f"# the list\n{MALLORY}\n\n{BOB}  # added today\n",
    ],
    ids=["array", "object", "lines"],
)
def test_every_form_of_list_is_read_and_addresses_compare_whatever_their_case(screen: Bench, server: Server, listing: str) -> None:
    server.says(listing.encode())
    assert output(screen.run(arguments(server), server=server)) == {"listed": [MALLORY], "entries": 2}
    assert output(screen.run(arguments(server, ALICE, BOB), server=server)) == {"listed": [BOB], "entries": 2}
    assert output(screen.run(arguments(server, ALICE), server=server)) == {"listed": [], "entries": 2}
    assert server.asked[0][:2] == ("GET", "/list")


def test_a_sender_that_is_its_own_receiver_is_listed_once(screen: Bench, server: Server) -> None:
    server.says([MALLORY])
    assert output(screen.run(arguments(server, MALLORY, MALLORY), server=server))["listed"] == [MALLORY]


def test_two_engines_give_the_same_output_and_the_same_fuel(screen: Bench, server: Server, compiled: Path) -> None:
    server.says([MALLORY, BOB])
    other = ComponentEngine(compiled / "components")
    try:
        runs = [screen.run(arguments(server), server=server, engine=engine) for engine in (screen.engine, other, screen.engine, other)]
    finally:
        other.close()
    assert len({(run.output_json, run.fuel) for run in runs}) == 1


def test_a_recorded_run_is_replayed_without_a_network(screen: Bench, server: Server) -> None:
    server.says([MALLORY])
    run = screen.run(arguments(server), server=server)
    server.says([])
    again = screen.run(arguments(server), server=server, replay=run.transcript)
    assert (again.output_json, again.fuel, again.transcript.sha256) == (run.output_json, run.fuel, run.transcript.sha256)
    assert len(server.asked) == 1
    with pytest.raises(ReplayDiverged):
        screen.run({**arguments(server), "list_url": server.url("/other")}, server=server, replay=run.transcript)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"<html>maintenance</html>", "no address"),
        (b'{"error": "rate limited"}', "no array of addresses"),
        (b'["0x1234"]', "no address"),
        (b'["' + b"9" * 40 + b'"]', "no address"),
        (b"[1, 2]", "no address"),
        (b'{"addresses": [', "not JSON"),
        (b"null", "no address"),
    ],
)
def test_what_is_no_list_is_an_error_and_never_an_empty_list(screen: Bench, server: Server, said: bytes, told: str) -> None:
    server.says(said)
    with pytest.raises(ComponentFailed, match=told) as caught:
        screen.run(arguments(server), server=server)
    assert (caught.value.kind, caught.value.pure) == ("error", False)


def test_an_empty_list_is_said_to_be_empty(screen: Bench, server: Server) -> None:
    server.says([])
    assert output(screen.run(arguments(server), server=server)) == {"listed": [], "entries": 0}


def test_an_error_status_is_an_error_of_the_component(screen: Bench, server: Server) -> None:
    server.says([], status=503)
    with pytest.raises(ComponentFailed, match="answered 503"):
        screen.run(arguments(server), server=server)


def test_a_list_that_is_too_large_makes_the_operator_abstain(screen: Bench, server: Server) -> None:
    server.says(b" " * ((1 << 20) + 1))
    with pytest.raises(SandboxUnavailable, match="more than 1048576 bytes"):
        screen.run(arguments(server), server=server)


def test_a_server_that_drips_makes_the_operator_abstain_in_time(screen: Bench, server: Server) -> None:
    server.says([MALLORY], drip_s=0.2)
    with pytest.raises(SandboxUnavailable, match="in time"):
        screen.run(arguments(server), server=server, limits={"deadline_ms": 600})


def test_a_cut_off_answer_makes_the_operator_abstain(screen: Bench, server: Server) -> None:
    server.says([MALLORY], stated_length=100)
    with pytest.raises(SandboxUnavailable, match="fetch"):
        screen.run(arguments(server), server=server, limits={"deadline_ms": 1_000})


def test_a_redirect_to_another_host_is_refused_and_not_followed(screen: Bench, server: Server) -> None:
    elsewhere = Server()
    try:
        server.says(b"", status=302, headers={"location": elsewhere.url("/")})
        with pytest.raises(ComponentFailed, match="denied"):
            screen.run(arguments(server), server=server)
        assert elsewhere.asked == []
    finally:
        elsewhere.shutdown()
        elsewhere.server_close()


def test_a_server_that_is_not_there_makes_the_operator_abstain(screen: Bench, server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(SandboxUnavailable, match="cannot connect"):
        screen.run(arguments(server), server=server)


def test_a_url_of_a_host_that_the_manifest_does_not_list_is_refused(screen: Bench, server: Server) -> None:
    with pytest.raises(ComponentFailed, match="not in the manifest"):
        screen.run({**arguments(server), "list_url": "https://elsewhere.example/list"}, server=server)


def test_a_list_of_the_largest_size_fits_its_fuel(screen: Bench, server: Server) -> None:
    addresses = [f"0x{number:040x}" for number in range(22_000)]
    server.says(addresses)
    run = screen.run(arguments(server, addresses[-1]), server=server)
    assert output(run) == {"listed": [addresses[-1]], "entries": 22_000}
    assert run.fuel < 2 * 10**9
