"""A gateway without sockets that sells answers: the gate's wire behaviour on the gate's own checks, and every way to misbehave."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from placet.core import receipts
from placet.core.envelope import LocalBusSigner
from placet.core.errors import PaymentMalformed, PaymentRefused
from placet.core.payment.offers import REQUIRED_HEADER, RESPONSE_HEADER, SIGNATURE_HEADER, Offer, PaymentRequired, PaymentResponse, Scheme
from placet.core.payment.payload import parse_header
from placet.core.payment.verify import VerifiedPayment, verify
from placet.core.receipts import Execution, Finish, Mode, ModelRef, Price, Receipt
from placet.core.tensors import decode_request
from placet.core.types import Address, Hash32, hex0x
from placet.sdk.wallet import Asset
from placet.verify import ReceiptKey
from tests.support.payment import EXACT, TOKEN, UPTO

URL = "http://gateway.test"
SECRET = b"\x11" * 32
SIGNERS = (LocalBusSigner(b"\7" * 32), LocalBusSigner(b"\x08" * 32))
NODE = Address(b"\6" * 20)
MODEL = Hash32(b"\4" * 32)
ASSET = Asset("eip155:31337", TOKEN)
METERED = Asset("eip155:31337", TOKEN, permit2_allowance=10**9)
CHAT = "/v1/chat/completions"
WORDS = ("Once", " upon", " a", " time")
Answer = httpx.Response | Exception


class Bytes(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in pieces; `breaks` where the connection does."""

    def __init__(self, pieces: list[bytes], *, breaks: bool = False) -> None:
        self.pieces, self.breaks = pieces, breaks

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        if self.breaks:
            raise httpx.ReadError("connection reset")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


@dataclass
class Gateway:
    """`before`: what happens instead of paid tries, in order; None: nothing. `lie` changes the answer's document, `forge` the receipt."""

    offers: tuple[Offer, ...] = (EXACT,)
    free: bool = False
    before: list[Callable[[], Answer] | None] = field(default_factory=list)
    lie: Callable[[dict[str, Any]], Any] = lambda document: None
    lie_in_chunks: Callable[[list[dict[str, Any]]], Any] = lambda chunks: None
    forge: Callable[[Receipt], Receipt] = lambda receipt: receipt
    usage: int = 400
    cut: int | None = None
    seen: list[httpx.Request] = field(default_factory=list)
    payments: list[VerifiedPayment] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    answered: dict[bytes, tuple[bytes, list[bytes], dict[str, str]]] = field(default_factory=dict)
    identifiers: set[str] = field(default_factory=set)
    runs: int = 0
    nodes_status: int = 200

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        if request.url.path == "/api/v1/nodes":
            known = [{"node": hex0x(NODE), "keyId": "", "receiptKey": hex0x(signer.public_key)} for signer in SIGNERS]
            return httpx.Response(self.nodes_status, json={"nodes": known})
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"object": "list", "data": [{"id": "alice/chat", "object": "model"}]})
        body = request.read()
        self.bodies.append(body)
        given = request.headers.get_list(SIGNATURE_HEADER)
        if self.free:
            return self._answer(request, body, None)
        if not given:
            return self.wants_payment()
        (header,) = given
        return self._paid(request, body, header)

    def wants_payment(self, error: str = "payment_required", offers: tuple[Offer, ...] | None = None) -> httpx.Response:
        """402 with the offers."""
        required = PaymentRequired(self.offers if offers is None else offers, URL, "", error=error)
        document = {"error": {"message": "pay", "type": "payment_required", "param": None, "code": error}}
        return httpx.Response(402, json=document, headers={REQUIRED_HEADER: required.header(), "cache-control": "no-store"})

    def _paid(self, request: httpx.Request, body: bytes, header: str) -> httpx.Response:
        try:
            payload = parse_header(header, identifier_required=True)
            payment = verify(payload, self.offers, now=int(time.time()), needed_s=60)
        except PaymentMalformed as error:
            return problem(400, "payment_malformed", error.message)
        except PaymentRefused as error:
            return self.wants_payment(error.check)
        self.payments.append(payment)
        assert payload.identifier is not None
        self.identifiers.add(payload.identifier)
        if self.before and (instead := self.before.pop(0)) is not None:
            answer = instead()
            if isinstance(answer, Exception):
                raise answer
            return answer
        return self._answer(request, body, payment)

    def _answer(self, request: httpx.Request, body: bytes, payment: VerifiedPayment | None) -> httpx.Response:
        key = payment.key.id if payment is not None else bytes(32)
        known = self.answered.get(key) if payment is not None else None
        if known is not None and known[0] != body:
            return problem(409, "payment_conflict", "used before with another request")
        if known is None:
            self.runs += 1
            known = self.answered[key] = (body, *self._run(request.url.path, body, payment))
        _, pieces, headers = known
        if self.cut is not None:
            cut, self.cut = self.cut, None
            return httpx.Response(200, headers=headers, stream=Bytes(pieces[:cut], breaks=True))
        return httpx.Response(200, headers=headers, stream=Bytes(pieces))

    def _run(self, path: str, body: bytes, payment: VerifiedPayment | None) -> tuple[list[bytes], dict[str, str]]:
        asked = json.loads(body)
        if path.endswith("/infer"):
            return self._infer(asked, body, payment)
        surface = {CHAT: "chat.completions", "/v1/completions": "completions", "/v1/embeddings": "embeddings"}[path]
        wants = asked.get("placet", {})
        document = digested = self.document(surface, asked["model"])
        if surface == "embeddings":
            digest = hashlib.sha256(b"\0\0\0?\0\0\0@").hexdigest()
            digested = {**document, "data": [{"index": 0, "embeddingSha256": "0x" + digest}]}
        price = self._price(payment)
        made = [self.receipt(surface, asked["model"], asked, digested, wants, price, at) for at in range(len(SIGNERS))]
        placet: dict[str, Any] = {"receipt": receipts.document_of(made[0]), "routing": {"why": "there is one"}}
        if wants.get("mode") == "audited":
            placet["audit"] = [receipts.document_of(made[1])]
        headers = self._headers(payment, None if price is None else price.amount)
        if asked.get("stream"):
            return self._stream(document, placet), headers | {"content-type": "text/event-stream"}
        self.lie(document)
        return [json.dumps({**document, "placet": placet}).encode()], headers | {"content-type": "application/json"}

    def _price(self, payment: VerifiedPayment | None) -> Price | None:
        if payment is None:
            return None
        amount = payment.maximum if payment.scheme is Scheme.EXACT else min(self.usage, payment.maximum)
        return Price(amount, payment.offer.asset, payment.offer.network, payment.payer, hex0x(payment.key.id))

    @staticmethod
    def _headers(payment: VerifiedPayment | None, amount: int | None) -> dict[str, str]:
        if payment is None:
            return {}
        said = PaymentResponse(True, payment.offer.network, payment.payer, Hash32(b"\5" * 32), amount)
        return {RESPONSE_HEADER: said.header(), "cache-control": "private, no-store"}

    def receipt(
        self, surface: str, model: str, asked: Any, answer: Any, wants: dict[str, Any], price: Price | None = None, at: int = 0
    ) -> Receipt:
        now = 1000 * int(time.time())
        nonce = wants.get("nonce")
        made = Receipt(
            id=Hash32(bytes([1]) * 32),
            surface=surface,
            request_sha256=receipts.request_digest(surface, model, asked),
            response_sha256=receipts.response_digest(answer),
            model=ModelRef("alice", model.partition("/")[2].partition("@")[0], 7, MODEL),
            mode=Mode(wants.get("mode", "vanilla")),
            execution=Execution("engine", "CPUExecutionProvider", Hash32(b"\x0f" * 32)),
            prompt_tokens=3,
            completion_tokens=4,
            rows=0,
            finish=Finish.STOP,
            started_at=now,
            finished_at=now,
            node=NODE,
            key_id=Hash32(bytes(32)),
            price=price if at == 0 else None,
            client_nonce=None if nonce is None else Hash32(bytes.fromhex(nonce[2:])),
        )
        return receipts.sign(self.forge(made), SIGNERS[at])

    @staticmethod
    def document(surface: str, model: str) -> dict[str, Any]:
        """An answer in one piece."""
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        if surface == "embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [0.5, 2.0]}]
            return {"object": "list", "model": model, "usage": usage, "data": data}
        chat, started = surface == "chat.completions", int(time.time())
        text = "".join(WORDS)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text, "refusal": None}} if chat else {"text": text}
        return {
            "id": ("chatcmpl-" if chat else "cmpl-") + "01" * 16,
            "object": "chat.completion" if chat else "text_completion",
            "created": started,
            "model": model,
            "system_fingerprint": "fp",
            "choices": [choice],
            "usage": usage,
        }

    def _stream(self, document: dict[str, Any], placet: dict[str, Any]) -> list[bytes]:
        chat = document["object"] == "chat.completion"
        head = {name: document[name] for name in ("id", "created", "model", "system_fingerprint")}
        head["object"] = "chat.completion.chunk" if chat else "text_completion"

        def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
            part: dict[str, Any] = {"delta": {"content": text} if text else {}} if chat else {"text": text}
            return {**head, "choices": [{"index": 0, "finish_reason": finish, "logprobs": None, **part}]}

        chunks = [*map(chunk, WORDS), chunk("", "stop"), {**head, "choices": [], "usage": document["usage"], "placet": placet}]
        self.lie_in_chunks(chunks)
        raw = b"".join(b"data: " + json.dumps(item).encode() + b"\n\n" for item in chunks) + b"data: [DONE]\n\n"
        return [raw[at : at + 37] for at in range(0, len(raw), 37)]  # cut anywhere

    def _infer(self, asked: dict[str, Any], body: bytes, payment: VerifiedPayment | None) -> tuple[list[bytes], dict[str, str]]:
        wants = json.loads(asked.get("parameters", {}).get("placet", "{}"))
        read = decode_request(body)
        inputs = [receipts.TensorDigest(t.name, t.datatype, t.shape, Hash32(hashlib.sha256(t.data).digest())) for t in read.tensors]
        digested = {"inputs": receipts.tensors_document(inputs), "outputs": [], "parameters": dict(read.parameters)}
        result = receipts.TensorDigest("y", "FP32", (1, 2), Hash32(hashlib.sha256(b"\0\0\0?\0\0\0@").digest()))
        answer = {"outputs": receipts.tensors_document([result])}
        price = self._price(payment)
        made = self.receipt("tensors", "alice/score", digested, answer, wants, price)
        document: dict[str, Any] = {
            "model_name": "alice/score",
            "model_version": "7",
            "parameters": {"placet_receipt": receipts.encode(made).decode()},
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 2.0]}],
        }
        self.lie(document)
        headers = self._headers(payment, None if price is None else price.amount)
        return [json.dumps(document).encode()], headers | {"content-type": "application/json"}


def problem(status: int, code: str, message: str = "no", **headers: str) -> httpx.Response:
    """An error in OpenAI's form."""
    return httpx.Response(
        status, json={"error": {"message": message, "type": "server_error", "param": None, "code": code}}, headers=headers
    )


def keys() -> list[ReceiptKey]:
    """The nodes' keys."""
    return [ReceiptKey(signer.public_key, NODE) for signer in SIGNERS]


def metered(gateway: Gateway) -> Gateway:
    """One that meters, and also sells at a fixed price."""
    return replace(gateway, offers=(EXACT, UPTO))
