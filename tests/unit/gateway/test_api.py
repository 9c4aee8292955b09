"""The REST surface: typed answers to everything, one task a request, and tenants that do not see each other."""

from __future__ import annotations

import asyncio
import importlib
import json
import pkgutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from sqlalchemy.exc import OperationalError

import placet.gateway
from placet.core import errors
from placet.core.bus import BusUnavailable
from placet.core.digests import intent_hash
from placet.core.errors import ALL_ERRORS, PlacetError, Unavailable
from placet.core.evm.rpc import RpcError
from placet.core.messages import Admission
from placet.core.types import Address, Ordering, address_from, hex0x
from placet.gateway import requests as parsing
from placet.gateway.intents import Intents
from tests.support.authorization import CLIENT, ROOT, SENDER
from tests.support.gateway import Answer, Stage
from tests.unit.gateway.test_requests import JSON

STRANGER = "0x" + "99" * 20


def is_problem(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """An RFC 9457 document of this status and code."""
    assert (answer.status, answer.body["code"]) == (status, code), answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.body["status"] == status
    assert answer.body["type"] == f"urn:placet:error:{code}"
    assert {"title", "detail", "retryable"} <= set(answer.body)
    assert "Traceback" not in str(answer.body)
    return dict(answer.body)


# --- the surface


async def test_an_intent_gets_its_signed_decision(stage: Stage) -> None:
    answer = await stage.gateway.submit()
    assert (answer.status, answer.body["decision"]) == (200, "allow")
    assert answer.headers["location"] == f"/api/v1/tasks/{answer.body['taskId']}"
    task = await stage.task(answer.body["taskId"])
    assert task["stage"] == "certified"
    assert task["result"] == answer.body
    attestation = await stage.gateway.request("GET", f"/api/v1/attestations/{answer.body['taskId']}")
    assert attestation.body == answer.body["attestation"]


async def test_a_denial_is_an_answer_like_any_other(stage: Stage) -> None:
    stage.answer = lambda context: stage.world.certified(context, allow=False)
    answer = await stage.gateway.submit()
    assert (answer.status, answer.body["decision"]) == (200, "deny")


async def test_who_does_not_want_to_wait_is_told_where_to_look(stage: Stage) -> None:
    answer = await stage.gateway.submit(headers={"prefer": "respond-async"})
    assert answer.status == 202
    assert (await stage.ended(answer.body["taskId"]))["stage"] == "certified"


async def test_no_answer_in_time_is_a_504_that_names_the_task_and_the_task_still_ends(tmp_path: Path) -> None:
    stage = Stage(tmp_path, answer_within_s=0.2)
    await stage.open()
    try:
        stage.answer = lambda context: None
        problem = is_problem(await stage.gateway.submit(), 504, "timeout")
        assert problem["retryable"]
        assert (await stage.task(problem["taskId"]))["stage"] == "submitted"
        (context,) = await stage.batches()
        from placet.core import topics

        await stage.bus.publish(topics.ATTESTATIONS, context.id, stage.world.certified(context))
        assert (await stage.ended(problem["taskId"]))["stage"] == "certified"
    finally:
        await stage.close()


async def test_a_failure_is_a_503_with_what_each_operator_said(stage: Stage) -> None:
    stage.answer = stage.world.failed
    answer = await stage.gateway.submit()
    problem = is_problem(answer, 503, "no_quorum")
    assert problem["retryable"]
    assert problem["taskId"].startswith("0x")
    assert problem["operators"] == []
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/api/v1/nothing", 404, "not_found"),
        ("GET", "/api/v1/intents", 405, "method_not_allowed"),
        ("DELETE", "/api/v1/policies", 405, "method_not_allowed"),
        ("GET", "/api/v1/tasks/0x12", 422, "invalid_input"),
        ("GET", "/api/v1/tasks/" + "0x" + "00" * 32, 404, "not_found"),
        ("GET", "/api/v1/attestations/" + "0x" + "00" * 32, 404, "not_found"),
        ("POST", "/api/v1/intents", 422, "invalid_input"),
        ("POST", "/api/v1/intents/prepare", 422, "invalid_input"),
        ("POST", "/api/v1/policies", 422, "invalid_input"),
    ],
)
async def test_every_wrong_path_method_and_body_has_its_typed_answer(stage: Stage, method: str, path: str, status: int, code: str) -> None:
    is_problem(await stage.gateway.request(method, path), status, code)


async def test_without_a_key_nothing_is_told(stage: Stage) -> None:
    path = "/api/v1/tasks/" + "0x" + "00" * 32
    wrong = stage.key[:-4] + ("0000" if not stage.key.endswith("0000") else "1111")
    for key in ("", "nonsense", "placet_" + "0" * 16 + "_" + "0" * 64, wrong, stage.key[:-1], stage.key.upper()):
        problem = is_problem(await stage.gateway.request("GET", path, key=key or "none"), 401, "unauthenticated")
        assert stage.key not in str(problem)
    answer = await stage.gateway.request("GET", path, key="", headers={"authorization": "Basic " + stage.key})
    is_problem(answer, 401, "unauthenticated")


async def test_a_body_above_the_limit_is_refused_as_soon_as_it_shows(stage: Stage) -> None:
    limit = parsing.MAX_BODY_BYTES
    path = "/api/v1/intents"
    is_problem(await stage.gateway.request("POST", path, b"", headers={"content-length": str(limit + 1)}), 413, "too_large")
    is_problem(await stage.gateway.request("POST", path, b"", headers={"content-length": "-1"}), 413, "too_large")
    endless = [b" " * 65_536] * 1000
    is_problem(await stage.gateway.request("POST", path, chunks=endless), 413, "too_large")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bytes], Answer]]:
    """Posts to one gateway, in a loop of its own: hypothesis asks it many times."""
    loop = asyncio.new_event_loop()
    stage = Stage(tmp_path_factory.mktemp("fuzz"))
    loop.run_until_complete(stage.open())
    yield lambda path, body: loop.run_until_complete(stage.gateway.request("POST", path, body))
    loop.run_until_complete(stage.close())
    loop.close()


@pytest.mark.parametrize("path", ["/api/v1/intents", "/api/v1/intents/prepare", "/api/v1/policies"])
@settings(max_examples=100, deadline=None)
@given(body=JSON)
def test_any_json_to_any_route_is_answered_with_a_typed_4xx(asked: Callable[[str, bytes], Answer], path: str, body: Any) -> None:
    call = {"policyClient": hex0x(CLIENT), "call": {"from": hex0x(SENDER), "functionSignature": "f(uint256)", "arguments": body}}
    for document in (body, {"policyClient": body, "intent": body, "call": body}, call, {**call, "call": {"from": body, "value": body}}):
        answer = asked(path, json.dumps(document).encode())
        assert 400 <= answer.status < 500, (document, answer)
        assert answer.body["code"] in {kind.code for kind in ALL_ERRORS}


@pytest.mark.parametrize(
    "call",
    [
        {"functionSignature": "f(uint256)", "arguments": ["x"]},
        {"functionSignature": "f(uint256)", "arguments": ["1" * 10_000]},
        {"functionSignature": "f(uint256)", "arguments": [[1]]},
        {"functionSignature": "f(bytes)", "arguments": ["0xzz"]},
        {"functionSignature": "f(address[2])", "arguments": [["0x00", None]]},
        {"functionSignature": "f(string)", "arguments": [1]},
        {"functionSignature": "f(", "arguments": []},
        {"functionSignature": 7},
        {"functionSignature": "f(uint256)", "arguments": {}},
        {"data": "0x0"},
        {"value": "-1"},
    ],
)
async def test_a_call_that_cannot_be_prepared_says_what_is_wrong(stage: Stage, call: dict[str, Any]) -> None:
    body = {"policyClient": hex0x(CLIENT), "call": {"from": hex0x(SENDER), **call}}
    answer = await stage.gateway.request("POST", "/api/v1/intents/prepare", body)
    is_problem(answer, 422, "invalid_input")


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (Unavailable("no RPC node answers"), "no RPC node"),
        (RpcError(-32000, "header not found"), "node"),
        (OperationalError("select secret", {}, Exception("password=hunter2")), "database"),
        (ConnectionRefusedError("10.1.2.3"), "database"),
        (BusUnavailable("broker 10.1.2.3"), "bus"),
    ],
    ids=["node-away", "node-behind", "database", "socket", "bus"],
)
async def test_what_is_away_is_a_503_that_may_be_tried_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, trouble: Exception, words: str
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise trouble

    monkeypatch.setattr(stage.gateway.intents, "submit", fail)
    problem = is_problem(await stage.gateway.submit(), 503, "unavailable")
    assert words in problem["detail"]
    assert problem["retryable"]
    assert not any(secret in str(problem) for secret in ("hunter2", "10.1.2.3", "secret"))


async def test_a_defect_of_ours_shows_nothing_of_the_inside(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("the secret is 42")

    monkeypatch.setattr(stage.gateway.intents, "submit", fail)
    problem = is_problem(await stage.gateway.submit(), 500, "internal")
    assert "42" not in str(problem)


# --- early refusals: what operators would deny or abstain from is refused at once


def test_every_code_of_the_taxonomy_has_its_row_in_the_documentation() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    rows = {cells[1].strip(" `"): [cell.strip() for cell in cells] for line in page.splitlines() if len(cells := line.split("|")) > 5}
    for kind in ALL_ERRORS:
        _, _, status, grpc, retryable, meaning, *_ = rows[kind.code]
        assert (int(status), grpc, retryable) == (kind.http_status, kind.grpc_status, "yes" if kind.retryable else "no"), kind.code
        assert meaning
    assert set(rows) - {"code", "---"} == {kind.code for kind in ALL_ERRORS}


def test_every_error_of_the_services_is_in_the_taxonomy() -> None:
    for package in (placet.gateway,):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if "migrations" not in module.name:
                importlib.import_module(module.name)

    def below(kind: type[PlacetError]) -> set[type[PlacetError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    clients = {
        kind for kind in below(PlacetError) if kind.__module__.startswith("placet.sdk.")
    }  # raised at clients only; what is loaded of it
    assert below(PlacetError) - {PlacetError} - clients == set(ALL_ERRORS)
    codes = [kind.code for kind in (*ALL_ERRORS, *clients)]
    assert len(set(codes)) == len(codes)
    for kind in ALL_ERRORS:
        document = kind("what to do", field="/x", taskId="0x00").problem()
        assert document["code"] == kind.code
        assert document["taskId"] == "0x00"
    assert errors.InvalidInput("x").problem().get("field") is None


async def refusal(stage: Stage, **changes: Any) -> Answer:
    answer = await stage.gateway.submit(**changes)
    assert await stage.batches() == [], "nobody was asked"
    return answer


async def test_a_deadline_that_has_passed(stage: Stage) -> None:
    answer = await refusal(stage, intent={"deadline": int(time.time()) - 5})
    assert is_problem(answer, 422, "invalid_input")["field"] == "/intent/deadline"


async def test_a_chain_that_is_not_served(stage: Stage) -> None:
    assert is_problem(await refusal(stage, intent={"chainId": 1}), 422, "invalid_input")["field"] == "/intent/chainId"


async def test_an_address_that_is_no_policy_client(stage: Stage) -> None:
    assert is_problem(await refusal(stage, policyClient=STRANGER), 422, "wrong_policy")["field"] == "/policyClient"


async def test_a_policy_that_nobody_knows(stage: Stage) -> None:
    stage.policies.known = False
    assert is_problem(await refusal(stage), 409, "policy_not_admitted")["policyId"] == hex0x(stage.world.policy_id)


async def test_a_policy_that_is_not_admitted_yet_and_one_that_was_refused(stage: Stage) -> None:
    stage.policies.admitted = False
    assert is_problem(await refusal(stage), 409, "policy_not_admitted")["retryable"] is True
    address = stage.world.members[0].address
    stage.policies.said = {address: Admission(stage.world.policy_id, False, "1", "rego: no")}
    problem = is_problem(await refusal(stage), 409, "policy_not_admitted")
    assert problem["retryable"] is False
    assert problem["operators"] == [{"operator": hex0x(address), "reason": "rego: no"}]


async def test_a_client_whose_ordering_is_not_its_policys(stage: Stage) -> None:
    pins = stage.world.chain.pins
    stage.world.chain.pins = {CLIENT: replace(pins[CLIENT], ordering=Ordering.FREE)}
    is_problem(await refusal(stage), 422, "verification_failed")


async def test_calldata_of_another_function(stage: Stage) -> None:
    assert is_problem(await refusal(stage, intent={"data": "0xdeadbeef"}), 422, "invalid_input")["field"] == "/intent/data"


async def test_a_signature_by_somebody_else(stage: Stage) -> None:
    problem = is_problem(await refusal(stage, signature="0x" + "11" * 64 + "1b", submit="relay"), 422, "invalid_input")
    assert problem["field"] == "/signature"


async def test_a_signature_for_another_client_is_none(stage: Stage) -> None:
    account = Account.create()
    sender = address_from(account.address)
    intent = stage.world.intent(sender=sender, deadline=stage.deadline)
    changes: dict[str, Any] = {"intent": {"from": account.address.lower()}, "submit": "relay"}
    for client, status in ((CLIENT, 200), (Address(b"\x0d" * 20), 422)):
        signature = Account.unsafe_sign_hash(intent_hash(intent, client), account.key).signature
        answer = await stage.gateway.submit(signature="0x" + bytes(signature).hex(), **changes)
        assert answer.status == status, answer


async def test_a_client_that_the_key_may_not_ask_for(stage: Stage) -> None:
    key = await stage.another_key(clients=frozenset({Address(b"\x0d" * 20)}))
    is_problem(await refusal(stage, key=key), 403, "forbidden")


async def test_an_idempotency_key_without_measure(stage: Stage) -> None:
    for name in ("", "x" * 256):
        is_problem(await stage.gateway.submit(headers={"idempotency-key": name}), 422, "invalid_input")


async def test_a_client_that_changed_its_policy_before_its_batch_closed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def passes(*_: Any) -> None:
        pins = stage.world.chain.pins[CLIENT]
        stage.world.chain.pins = {CLIENT: replace(pins, policy_id=stage.world.batch().id)}

    monkeypatch.setattr(Intents, "_early_checks", passes)
    is_problem(await refusal(stage), 422, "wrong_policy")


# --- idempotency


async def test_25_the_same_request_is_one_task_with_one_answer(stage: Stage) -> None:
    named = {"idempotency-key": "order-1"}
    first = await stage.gateway.submit(headers=named)
    again = await stage.gateway.submit(headers=named)
    unnamed = [await stage.gateway.submit(1), await stage.gateway.submit(1)]
    assert first.body == again.body
    assert unnamed[0].body == unnamed[1].body
    assert len(await stage.batches()) == 2


async def test_25_equal_requests_at_once_are_one_task(stage: Stage) -> None:
    named = {"idempotency-key": "order-1"}
    answers = await asyncio.gather(*(stage.gateway.submit(headers=named) for _ in range(20)))
    assert len({answer.body["taskId"] for answer in answers}) == 1
    assert len([task for context in await stage.batches() for task in context.task_ids]) == 1


async def test_25_an_idempotency_key_with_another_request_is_a_conflict(stage: Stage) -> None:
    named = {"idempotency-key": "order-1"}
    first = await stage.gateway.submit(headers=named)
    for changes in ({"intent": {"nonce": "7"}}, {"args": {"a": 1}}, {"signature": ""}, {"submit": "none"}):
        answer = await stage.gateway.submit(headers=named, **changes)
        if changes in ({"signature": ""}, {"submit": "none"}):
            assert answer.body == first.body, "the same request, written otherwise"
        else:
            is_problem(answer, 409, "idempotency_conflict")


async def test_25_also_while_the_first_is_still_in_hand(stage: Stage) -> None:
    stage.answer = lambda context: None
    named = {"idempotency-key": "order-1", "prefer": "respond-async"}
    answers = await asyncio.gather(stage.gateway.submit(0, headers=named), stage.gateway.submit(1, headers=named))
    assert sorted(answer.status for answer in answers) == [202, 409]
    assert len(await stage.batches()) == 1


async def test_25_a_failure_is_never_returned_again(stage: Stage) -> None:
    named = {"idempotency-key": "order-1"}
    stage.answer = stage.world.failed
    failed = is_problem(await stage.gateway.submit(headers=named), 503, "no_quorum")
    stage.clock.now += 2
    stage.answer = stage.world.certified
    answer = await stage.gateway.submit(headers=named)
    assert answer.body["decision"] == "allow"
    assert answer.body["taskId"] != failed["taskId"]
    assert (await stage.task(failed["taskId"]))["stage"] == "failed"
    is_problem(await stage.gateway.submit(1, headers=named), 409, "idempotency_conflict")


async def test_25_a_certificate_that_has_expired_is_not_returned_again(stage: Stage) -> None:
    first = await stage.gateway.submit()
    stage.clock.now += stage.world.policy.valid_for + 1
    second = await stage.gateway.submit()
    assert second.body["taskId"] != first.body["taskId"]


async def test_who_hangs_up_does_not_end_it_for_those_who_ask_the_same(stage: Stage) -> None:
    gate = asyncio.Event()
    genuine = stage.gateway.batcher._publish

    async def slow(*arguments: Any) -> None:
        await gate.wait()
        await genuine(*arguments)

    stage.gateway.batcher._publish = slow  # type: ignore[method-assign,assignment]
    named = {"idempotency-key": "order-1"}
    first = asyncio.create_task(stage.gateway.submit(headers=named))
    second = asyncio.create_task(stage.gateway.submit(headers=named))

    async def in_hand() -> bool:
        return bool(stage.gateway.batcher._closing)

    await stage.until(in_hand)
    first.cancel()
    gate.set()
    assert (await second).body["decision"] == "allow"
    assert len(await stage.batches()) == 1


async def test_after_a_restart_the_same_request_finds_its_task(stage: Stage) -> None:
    named = {"idempotency-key": "order-1"}
    first = await stage.gateway.submit(headers=named)
    await stage.restart()
    assert (await stage.gateway.submit(headers=named)).body == first.body
    assert len(await stage.batches()) == 1


# --- threats 25: tenants


async def test_25_another_tenants_task_attestation_and_answer_do_not_exist(stage: Stage) -> None:
    other = await stage.another_key()
    answer = await stage.gateway.submit(headers={"idempotency-key": "order-1"})
    task_id = answer.body["taskId"]
    for path in (f"/api/v1/tasks/{task_id}", f"/api/v1/attestations/{task_id}"):
        mine, theirs = await stage.gateway.request("GET", path), await stage.gateway.request("GET", path, key=other)
        assert mine.status == 200
        unknown = await stage.gateway.request("GET", path.replace(task_id, "0x" + "00" * 32), key=other)
        assert theirs.status == unknown.status == 404
        assert theirs.body["detail"] == unknown.body["detail"], "not even that it is there is told"


async def test_25_the_same_idempotency_key_of_two_tenants_is_two_requests(stage: Stage) -> None:
    other = await stage.another_key()
    named = {"idempotency-key": "order-1"}
    mine = await stage.gateway.submit(0, headers=named)
    theirs = await stage.gateway.submit(1, headers=named, key=other)
    assert theirs.status == 200
    assert mine.body["taskId"] != theirs.body["taskId"]


async def test_25_who_sends_anothers_intent_first_does_not_own_its_answer(stage: Stage) -> None:
    other = await stage.another_key()
    stolen = await stage.gateway.submit(key=other)
    mine = await stage.gateway.submit()  # a second later, as a task of its own
    assert mine.status == stolen.status == 200
    assert mine.body["taskId"] != stolen.body["taskId"]
    assert (await stage.gateway.request("GET", f"/api/v1/tasks/{mine.body['taskId']}", key=other)).status == 404
    assert (await stage.gateway.request("GET", f"/api/v1/tasks/{stolen.body['taskId']}")).status == 404


async def test_25_the_same_intent_of_two_tenants_at_once_is_two_tasks(stage: Stage) -> None:
    other = await stage.another_key()
    mine, theirs = await asyncio.gather(stage.gateway.submit(), stage.gateway.submit(key=other))
    assert mine.status == theirs.status == 200
    assert mine.body["taskId"] != theirs.body["taskId"]


async def test_25_a_failure_of_one_tenant_blocks_no_other(stage: Stage) -> None:
    other = await stage.another_key()
    stage.answer = stage.world.failed
    is_problem(await stage.gateway.submit(key=other), 503, "no_quorum")
    stage.answer = stage.world.certified
    assert (await stage.gateway.submit()).body["decision"] == "allow"
