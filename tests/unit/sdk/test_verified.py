"""No answer is handed over whose receipt does not hold; each way to lie fails its own check, in one piece and in a stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from placet.core import receipts
from placet.core.errors import InvalidInput, PlacetError
from placet.core.receipts import Finish, Mode, ModelRef, Receipt
from placet.core.types import Address, Hash32
from placet.sdk.budget import Budget
from placet.sdk.paying import Payer, PayingTransport
from placet.sdk.verified import AsyncVerifyingTransport, Keys, ReceiptRejected, TrustOnFirstUse, Verified, Verifier, VerifyingTransport
from placet.sdk.wallet import Rules, Wallet
from placet.verify import ReceiptKey
from tests.support.payment import UPTO
from tests.unit.sdk.fake import CHAT, METERED, MODEL, SECRET, SIGNERS, URL, WORDS, Gateway, keys

BODY = {"model": "alice/chat", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.25}
STREAMED = {**BODY, "stream": True}


class Buyer:
    """A client that pays and verifies."""

    def __init__(self, gateway: Gateway, trusted: Keys | None = None, **more: Any) -> None:
        self.budget = Budget(per_payment="1")
        self.verified: list[Verified] = []
        payer = Payer(URL, Wallet(SECRET), self.budget, Rules((METERED,)))
        verifier = Verifier(URL, trusted or Keys(keys()), charged=payer.charged, on_verified=self.verified.append, **more)
        paying = PayingTransport(payer, httpx.MockTransport(gateway))
        self.http = httpx.Client(base_url=URL, transport=VerifyingTransport(verifier, paying))

    def post(self, body: Any = BODY, path: str = CHAT) -> Any:
        return self.http.post(path, json=body).json()

    def stream(self, body: Any = STREAMED, path: str = CHAT) -> tuple[list[Any], Exception | None]:
        """Events that were handed over, and how it ended."""
        raw, ended = b"", None
        with self.http.stream("POST", path, json=body) as answer:
            try:
                for part in answer.iter_bytes():
                    raw += part
            except ReceiptRejected as error:
                ended = error
        events = [part.removeprefix(b"data: ") for part in raw.split(b"\n\n") if part]
        return [event.decode() if event == b"[DONE]" else json.loads(event) for event in events], ended


def test_an_answer_that_holds_is_handed_over_and_costs_what_its_receipt_says() -> None:
    gateway = Gateway(offers=(UPTO,))
    buyer = Buyer(gateway)
    answer = buyer.post()
    assert answer["choices"][0]["message"]["content"] == "".join(WORDS)
    (verified,) = buyer.verified
    assert verified.report.ok
    assert {check.number for check in verified.report.checks} >= {1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12}
    assert verified.receipt.client_nonce is not None
    assert json.loads(gateway.bodies[-1])["placet"]["nonce"] == "0x" + verified.receipt.client_nonce.hex()
    assert buyer.budget.spent().total == "0.0004"


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_stream_that_holds_is_handed_over_to_its_end(path: str) -> None:
    buyer = Buyer(Gateway(offers=(UPTO,)))
    events, ended = buyer.stream(path=path)
    assert ended is None
    assert events[-1] == "[DONE]"
    texts = [choice.get("text") or choice.get("delta", {}).get("content") or "" for event in events[:-1] for choice in event["choices"]]
    assert "".join(texts) == "".join(WORDS)
    assert receipts.from_document(events[-2]["placet"]["receipt"]).id == buyer.verified[0].receipt.id
    assert buyer.budget.spent().total == "0.0004"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
def test_other_surfaces_are_verified_alike(path: str) -> None:
    gateway = Gateway()
    assert Buyer(gateway).post({"model": "alice/chat", "input": "x"}, path)["model"] == "alice/chat"
    gateway.lie = lambda document: document.update(model="alice/other")
    with pytest.raises(ReceiptRejected) as caught:
        Buyer(gateway).post({"model": "alice/chat", "input": "x"}, path)
    assert caught.value.check == 6


@pytest.mark.parametrize(
    "vectors",
    [[[0.5, 2.5]], [[0.5]], [[0.5, 2.0000000001]], ["AAAAPwAAAEE="], ["!"], [None], [[0.5, 2.0], [0.5, 2.0]]],
)
def test_no_other_vector_is_handed_over(vectors: list[Any]) -> None:
    def lie(document: dict[str, Any]) -> None:
        document["data"] = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]

    with pytest.raises(ReceiptRejected) as caught:
        Buyer(Gateway(lie=lie)).post({"model": "alice/chat", "input": "x"}, "/v1/embeddings")
    assert caught.value.check == 6
    same = Gateway(lie=lambda document: document["data"][0].update(embedding="AAAAPwAAAEA="))
    assert Buyer(same).post({"model": "alice/chat", "input": "x"}, "/v1/embeddings")["data"]


def tensors(**parameters: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1.0]}], "parameters": parameters}


def test_tensors_are_verified_too() -> None:
    path = "/v2/models/alice/score/infer"
    gateway = Gateway()
    buyer = Buyer(gateway)
    assert buyer.post(tensors(), path)["outputs"][0]["data"] == [0.5, 2.0]
    assert buyer.verified[0].receipt.surface == "tensors"
    lies: list[tuple[Callable[[dict[str, Any]], None], int]] = [
        (lambda document: document["outputs"][0].update(data=[0.5, 2.5]), 6),
        (lambda document: document["outputs"][0].update(shape=[2]), 6),
        (lambda document: document["outputs"][0].update(parameters={"binary_data_size": 8}), 6),
        (lambda document: document.update(model_version="8"), 7),
        (lambda document: document.pop("parameters"), 0),
    ]
    for lie, check in lies:
        gateway.lie = lie
        with pytest.raises(ReceiptRejected) as caught:
            buyer.post(tensors(), path)
        assert caught.value.check == check
    with pytest.raises(InvalidInput, match="binary"):
        buyer.http.post(path, content=b"{}", headers={"inference-header-content-length": "2"})


def changed(**changes: Any) -> Callable[[Receipt], Receipt]:
    return lambda receipt: replace(receipt, **changes)


def _price(**changes: Any) -> Callable[[Receipt], Receipt]:
    def forge(receipt: Receipt) -> Receipt:
        return receipt if receipt.price is None else replace(receipt, price=replace(receipt.price, **changes))

    return forge


FORGED: list[tuple[Callable[[Receipt], Receipt], int]] = [
    (changed(node=Address(b"\1" * 20)), 4),
    (changed(request_sha256=Hash32(b"\1" * 32)), 5),
    (changed(response_sha256=Hash32(b"\1" * 32)), 6),
    (changed(model=ModelRef("alice", "other", 7, MODEL)), 7),
    (changed(model=ModelRef("mallory", "chat", 7, MODEL)), 7),
    (changed(mode=Mode.ZKML), 8),
    (_price(amount=1001), 9),
    (_price(payer=Address(b"\1" * 20)), 9),
    (_price(asset=Address(b"\1" * 20)), 9),
    (_price(network="eip155:1"), 9),
    (_price(payment_id="0x" + "01" * 32), 9),
    (changed(price=None), 9),
    (changed(client_nonce=Hash32(b"\1" * 32)), 10),
    (changed(client_nonce=None), 10),
    (changed(started_at=2**52), 11),
    (changed(finish=Finish.INTERRUPTED), 12),
]


@pytest.mark.parametrize(("forge", "check"), FORGED)
def test_a_receipt_that_does_not_hold_is_refused_with_its_check(forge: Callable[[Receipt], Receipt], check: int) -> None:
    buyer = Buyer(Gateway(forge=forge))
    with pytest.raises(ReceiptRejected) as caught:
        buyer.post()
    assert caught.value.check == check
    events, ended = buyer.stream()
    assert isinstance(ended, ReceiptRejected)
    assert ended.check == check
    assert all(event != "[DONE]" and "placet" not in event for event in events)
    assert buyer.verified == []
    assert buyer.budget.spent().total == "0.002", "what was signed counts"


def test_a_receipt_of_another_surface_is_not_taken_for_this_one() -> None:
    def forge(receipt: Receipt) -> Receipt:
        return replace(receipt, surface="completions")

    with pytest.raises(ReceiptRejected) as caught:
        Buyer(Gateway(forge=forge)).post()
    assert caught.value.check == 5


def _tamper(placet: Any) -> None:
    placet["receipt"]["usage"]["promptTokens"] += 1


LIES: list[tuple[Callable[[dict[str, Any]], None], int]] = [
    (lambda document: document["choices"][0]["message"].update(content="another"), 6),
    (lambda document: document.update(extra="not signed"), 6),
    (lambda document: document["usage"].update(prompt_tokens=4), 6),
    (lambda document: document["choices"].append(document["choices"][0]), 6),
    (lambda document: document.update(created=2**60), 6),
]


@pytest.mark.parametrize(("lie", "check"), LIES)
def test_an_answer_that_is_not_the_receipts_is_refused(lie: Callable[[dict[str, Any]], None], check: int) -> None:
    with pytest.raises(ReceiptRejected) as caught:
        Buyer(Gateway(lie=lie)).post()
    assert caught.value.check == check


def _into(at: int, **members: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda chunks: chunks[at]["choices"][0]["delta"].update(members)


CHUNKS: list[tuple[Callable[[list[dict[str, Any]]], Any], int]] = [
    (_into(1, content=" at"), 6),
    (_into(1, refusal="no"), 6),
    (_into(1, reasoning="no receipt covers this"), 6),
    (_into(1, role="system"), 6),
    (_into(1, tool_calls=[{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]), 6),
    (lambda chunks: chunks.pop(1), 6),
    (lambda chunks: chunks.insert(1, chunks[1]), 6),
    (lambda chunks: chunks[1].update(id="chatcmpl-other"), 6),
    (lambda chunks: chunks[1].update(note="unsigned"), 6),
    (lambda chunks: chunks[1].update(usage={"prompt_tokens": 1}), 6),
    (lambda chunks: chunks[1]["choices"][0].update(index=1), 6),
    (lambda chunks: chunks[1]["choices"][0].update(logprobs={"content": []}), 6),
    (lambda chunks: chunks[1]["choices"].append(chunks[2]["choices"][0]), 6),
    (lambda chunks: chunks[4]["choices"][0].update(finish_reason="length"), 6),
    (lambda chunks: chunks[3]["choices"][0].update(finish_reason="stop"), 6),
    (lambda chunks: chunks.append(chunks[0]), 6),
    (lambda chunks: chunks.pop(), 0),
    (lambda chunks: chunks[-1].pop("placet"), 6),
    (lambda chunks: chunks[-1].update(placet="?"), 0),
    (lambda chunks: _tamper(chunks[-1]["placet"]), 2),
]


@pytest.mark.parametrize(("lie", "check"), CHUNKS)
def test_a_stream_that_is_not_the_receipts_never_ends_well(lie: Callable[[list[dict[str, Any]]], None], check: int) -> None:
    events, ended = Buyer(Gateway(lie_in_chunks=lie)).stream()
    assert isinstance(ended, ReceiptRejected)
    assert ended.check == check
    assert "[DONE]" not in events


def test_a_failure_in_a_stream_is_told_and_ends_it() -> None:
    error = {"error": {"message": "gone", "code": "unavailable"}}
    events, ended = Buyer(Gateway(lie_in_chunks=lambda chunks: chunks.insert(2, error))).stream()
    assert ended is None
    assert events[-1] == error
    assert len(events) == 3


def test_a_stream_is_no_answer_in_one_piece_nor_the_other_way_round() -> None:
    def swapped(kind: str, raw: bytes) -> Any:
        return lambda: httpx.Response(200, headers={"content-type": kind}, content=raw)

    for body, instead in ((BODY, swapped("text/event-stream", b"data: [DONE]\n\n")), (STREAMED, swapped("application/json", b"{}"))):
        with pytest.raises(ReceiptRejected) as caught:
            Buyer(Gateway(before=[instead])).post(body)
        assert caught.value.check == 6


def test_keys_that_are_not_trusted_are_refused() -> None:
    with pytest.raises(ReceiptRejected) as caught:
        Buyer(Gateway(), Keys([ReceiptKey(SIGNERS[1].public_key)])).post()
    assert caught.value.check == 1
    with pytest.raises(ReceiptRejected) as caught:
        Buyer(Gateway(), Keys([replace(keys()[0], until=1)])).post()
    assert caught.value.check == 3
    with pytest.raises(InvalidInput):
        Keys()
    assert Buyer(Gateway(), Keys.of(["0x" + SIGNERS[0].public_key.hex()])).post()["choices"]


def test_keys_of_the_first_use_are_kept_and_no_others_believed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "state" / "keys.json"

    def asked(gateway: Gateway) -> int:
        return sum(request.url.path == "/api/v1/nodes" for request in gateway.seen)

    gateway = Gateway()
    buyer = Buyer(gateway, Keys(first_use=True, path=pins))
    with pytest.warns(TrustOnFirstUse, match=SIGNERS[0].public_key.hex()):
        buyer.post()
    buyer.post()
    again = Buyer(gateway, Keys(first_use=True, path=pins))
    again.post()
    assert asked(gateway) == 1
    monkeypatch.setattr("tests.unit.sdk.fake.SIGNERS", SIGNERS[1:])
    pins.write_text(json.dumps({URL: [{"key": "0x" + SIGNERS[0].public_key.hex()}]}))
    with pytest.raises(ReceiptRejected) as caught:
        Buyer(Gateway(), Keys(first_use=True, path=pins)).post()
    assert caught.value.check == 1
    pins.write_text("[")
    with pytest.raises(InvalidInput, match="move it away"):
        Buyer(Gateway(), Keys(first_use=True, path=pins)).post()


def test_who_cannot_have_keys_pays_nothing() -> None:
    gateway = Gateway(nodes_status=401)
    with pytest.raises(PlacetError, match="/api/v1/nodes"):
        Buyer(gateway, Keys(first_use=True)).post()
    assert gateway.payments == []


def test_a_model_can_be_pinned_by_its_digest() -> None:
    assert Buyer(Gateway(), models={"alice/chat": MODEL}).post()["choices"]
    with pytest.raises(ReceiptRejected) as caught:
        Buyer(Gateway(), models={"alice/chat": Hash32(b"\1" * 32)}).post()
    assert caught.value.check == 7
    assert Buyer(Gateway()).post({**BODY, "model": "alice/chat@7"})["choices"]
    with pytest.raises(ReceiptRejected) as caught:
        Buyer(Gateway()).post({**BODY, "model": "alice/chat@6"})
    assert caught.value.check == 7


def test_an_audited_answer_needs_the_other_nodes_receipts() -> None:
    asked = {**BODY, "placet": {"mode": "audited"}}
    buyer = Buyer(Gateway())
    with pytest.raises(ReceiptRejected) as caught:  # the fake's second node gives its own id, as every node does
        Buyer(Gateway(forge=lambda receipt: replace(receipt, execution=replace(receipt.execution, profile=None)))).post(asked)
    assert caught.value.check == 15
    assert buyer.post(asked)["placet"]["audit"]
    assert buyer.verified[0].audit is not None
    assert buyer.verified[0].audit.ok
    with pytest.raises(ReceiptRejected) as caught:
        Buyer(Gateway()).post({**BODY, "placet": {"mode": "audited", "auditors": 3}})
    assert caught.value.check == 13


def test_a_mode_that_was_not_asked_for_is_refused_and_a_default_one_asked_for() -> None:
    gateway = Gateway()
    buyer = Buyer(gateway, mode=Mode.AUDITED)
    buyer.post()
    assert json.loads(gateway.bodies[-1])["placet"]["mode"] == "audited"
    with pytest.raises(InvalidInput, match="tee_policy"):
        Buyer(gateway).post({**BODY, "placet": {"mode": "tee"}})


def test_nothing_unverifiable_is_asked() -> None:
    gateway = Gateway()
    buyer = Buyer(gateway)
    for path in ("/v1/responses", "/v1/images/generations", "/v2/models/alice/score/other"):
        with pytest.raises(InvalidInput, match="no receipt"):
            buyer.post(path=path)
    bodies: list[Any] = [[], "x", {"model": 1}, {**BODY, "placet": 1}, {**BODY, "placet": {"nonce": "x"}}]
    for body in bodies:
        with pytest.raises(InvalidInput):
            buyer.post(body)
    with pytest.raises(InvalidInput):
        buyer.http.post(CHAT, content=b"{")
    assert gateway.seen == []
    assert buyer.http.get("/v1/models").json()["data"]


def test_a_purchase_goes_on_with_the_nonce_it_was_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(before=[lambda: httpx.ReadTimeout("nothing came")] * 6)
    buyer = Buyer(gateway)
    monkeypatch.setattr("placet.sdk.steps.time.sleep", lambda seconds: None)
    with pytest.raises(httpx.ReadTimeout):
        buyer.post()
    assert buyer.post()["choices"]
    assert len({payment.key for payment in gateway.payments}) == 1
    assert len(set(gateway.bodies)) == 1
    assert len(buyer.verified) == 1


async def test_asynchronously_it_is_the_same() -> None:
    gateway = Gateway(free=True)
    transport = AsyncVerifyingTransport(Verifier(URL, Keys(keys())), httpx.MockTransport(gateway))
    async with httpx.AsyncClient(base_url=URL, transport=transport) as http:
        assert (await http.post(CHAT, json=BODY)).json()["choices"]
        async with http.stream("POST", CHAT, json=STREAMED) as stream:
            assert (await stream.aread()).endswith(b"data: [DONE]\n\n")
        gateway.forge = changed(mode=Mode.ZKML)
        with pytest.raises(ReceiptRejected):
            await http.post(CHAT, json=BODY)
        async with http.stream("POST", CHAT, json=STREAMED) as stream:
            with pytest.raises(ReceiptRejected):
                await stream.aread()
