"""Receipts of inference: what was asked, what was answered, by which model, how, and for how much. Specified in docs/reference/receipts.md.

A receipt is canonical JSON (RFC 8785) without fractions: counts, times and amounts are integers or decimal strings. It is signed with
Ed25519 over `placet/receipt/v1`, a zero byte, and its canonical bytes without the member `signature`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import rfc8785

from placet.core import jsonx
from placet.core.envelope import BusSigner
from placet.core.errors import InvalidInput
from placet.core.keccak import keccak256
from placet.core.merkle import leaf_hash
from placet.core.types import Address, Hash32, hex0x

DOMAIN = b"placet/receipt/v1\x00"
_LEDGER_LEAF = keccak256(b"ReceiptLeaf(uint256 chainId,address ledger,address poster,bytes32 receiptDigest)")
MAX_RECEIPT_BYTES = 16_384
MAX_REQUEST_BYTES = 8 << 20
_AMOUNT = re.compile(r"(?:0|[1-9][0-9]{0,77})\Z")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z")
_NETWORK = re.compile(r"eip155:[1-9][0-9]{0,19}\Z")
_JURISDICTION = re.compile(r"[A-Z]{2}\Z")


class Mode(StrEnum):
    """How an answer is proven."""

    VANILLA = "vanilla"
    TEE = "tee"
    ZKML = "zkml"
    AUDITED = "audited"


class Finish(StrEnum):
    """How an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    COMPLETE = "complete"
    """Not text: all outputs are there."""
    INTERRUPTED = "interrupted"
    """The caller left, or the deadline came; what was generated until then is what the receipt covers."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model version: its name for people, its manifest's digest for machines."""

    publisher: str
    name: str
    version: int
    sha256: Hash32


@dataclass(frozen=True, slots=True)
class Execution:
    """What ran it. `relayed` names the upstream when the node only passed the request on: then `engine` and `provider` are hearsay."""

    engine: str
    provider: str
    profile: Hash32 | None = None
    relayed: str | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """Atomic units of `asset` on `network` (CAIP-2)."""

    amount: int
    asset: Address
    network: str
    payer: Address
    payment_id: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """One answer. Times are unix milliseconds."""

    id: Hash32
    surface: str
    request_sha256: Hash32
    response_sha256: Hash32
    model: ModelRef
    mode: Mode
    execution: Execution
    prompt_tokens: int
    completion_tokens: int
    rows: int
    finish: Finish
    started_at: int
    finished_at: int
    node: Address | None
    key_id: Hash32
    price: Price | None = None
    client_nonce: Hash32 | None = None
    evidence_sha256: Hash32 | None = None
    jurisdiction: str | None = None
    signature: bytes = b""


def key_id_of(public_key: bytes) -> Hash32:
    """The name of a receipt key."""
    return Hash32(hashlib.sha256(b"placet/receipt-key/v1\x00" + public_key).digest())


def document_of(receipt: Receipt) -> dict[str, Any]:
    """The receipt as JSON values, with its signature when it has one. Members without a value are left out."""
    execution = receipt.execution
    document: dict[str, Any] = {
        "v": 1,
        "id": hex0x(receipt.id),
        "surface": receipt.surface,
        "requestSha256": hex0x(receipt.request_sha256),
        "responseSha256": hex0x(receipt.response_sha256),
        "model": {
            "name": f"{receipt.model.publisher}/{receipt.model.name}",
            "version": receipt.model.version,
            "sha256": hex0x(receipt.model.sha256),
        },
        "mode": receipt.mode.value,
        "execution": _present(
            {"engine": execution.engine, "provider": execution.provider, "profile": execution.profile, "relayed": execution.relayed}
        ),
        "usage": {"promptTokens": receipt.prompt_tokens, "completionTokens": receipt.completion_tokens, "rows": receipt.rows},
        "finishReason": receipt.finish.value,
        "startedAt": receipt.started_at,
        "finishedAt": receipt.finished_at,
        "keyId": hex0x(receipt.key_id),
    }
    price = receipt.price
    document |= _present(
        {
            "node": receipt.node,
            "clientNonce": receipt.client_nonce,
            "evidenceSha256": receipt.evidence_sha256,
            "jurisdiction": None if receipt.jurisdiction is None else {"declared": receipt.jurisdiction},
            "price": None
            if price is None
            else {
                "amount": str(price.amount),
                "asset": hex0x(price.asset),
                "network": price.network,
                "payer": hex0x(price.payer),
                "paymentId": price.payment_id,
            },
            "signature": receipt.signature or None,
        }
    )
    return document


def _present(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: hex0x(value) if isinstance(value, bytes) else value for name, value in members.items() if value is not None}


def signed_bytes(receipt: Receipt) -> bytes:
    """What the signature is over."""
    document = document_of(receipt)
    document.pop("signature", None)
    return DOMAIN + rfc8785.dumps(document)


def digest_of(receipt: Receipt) -> Hash32:
    """The receipt's digest: sha-256 of its canonical bytes without the signature. The leaf of the receipts' Merkle tree is made of it."""
    return Hash32(hashlib.sha256(signed_bytes(receipt)).digest())


def ledger_leaf(chain_id: int, ledger: Address, poster: Address, digest: Hash32) -> Hash32:
    """A receipt's leaf in the tree of a root that `poster` posts to a `ReceiptLedger` (docs/reference/signed-types.md)."""
    words = (chain_id.to_bytes(32, "big"), ledger.rjust(32, b"\0"), poster.rjust(32, b"\0"), digest)
    return leaf_hash(keccak256(_LEDGER_LEAF + b"".join(words)))


def sign(receipt: Receipt, signer: BusSigner) -> Receipt:
    """The receipt with its signature; `key_id` must be the signer's."""
    unsigned = replace(receipt, key_id=key_id_of(signer.public_key), signature=b"")
    return replace(unsigned, signature=signer.sign(signed_bytes(unsigned)))


def encode(receipt: Receipt) -> bytes:
    """Canonical JSON of a signed receipt."""
    return rfc8785.dumps(document_of(receipt))


class _Reader:
    """Members of a JSON object, each taken once; what is left over is refused."""

    def __init__(self, value: Any, field: str) -> None:
        if not isinstance(value, dict):
            raise InvalidInput(f"{field}: an object wanted", field=field)
        self._left = dict(value)
        self._field = field

    def _take(self, name: str) -> Any:
        try:
            return self._left.pop(name)
        except KeyError:
            raise InvalidInput(f"{self._field}: member {name!r} is missing", field=f"{self._field}/{name}") from None

    def has(self, name: str) -> bool:
        return name in self._left

    def text(self, name: str, form: re.Pattern[str] | None = None, longest: int = 256) -> str:
        value = self._take(name)
        if not isinstance(value, str) or len(value) > longest or (form is not None and not form.match(value)):
            raise InvalidInput(f"{self._field}/{name}: not of its form", field=f"{self._field}/{name}")
        return value

    def number(self, name: str, largest: int = 2**53 - 1) -> int:
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
            raise InvalidInput(f"{self._field}/{name}: an integer from 0 to {largest} wanted", field=f"{self._field}/{name}")
        return value

    def data(self, name: str, size: int) -> bytes:
        value = self._take(name)
        if not isinstance(value, str) or not re.fullmatch(rf"0x[0-9a-f]{{{2 * size}}}", value):
            raise InvalidInput(f"{self._field}/{name}: {size} bytes in lower-case 0x hex wanted", field=f"{self._field}/{name}")
        return bytes.fromhex(value[2:])

    def inside(self, name: str) -> _Reader:
        return _Reader(self._take(name), f"{self._field}/{name}")

    def done(self) -> None:
        if self._left:
            name = min(self._left)
            raise InvalidInput(f"{self._field}: unknown member {name!r}", field=f"{self._field}/{name}")


def decode(raw: bytes) -> Receipt:
    """A receipt from its JSON. Nothing is verified but its form.

    Raises:
        InvalidInput: too large, or not of the form; names the member.
    """
    document = _Reader(jsonx.parse(raw, field="receipt", max_bytes=MAX_RECEIPT_BYTES, max_depth=4), "receipt")
    return _receipt_of(document)


def from_document(value: Any) -> Receipt:
    """A receipt from JSON values that were parsed already. Raises InvalidInput."""
    return _receipt_of(_Reader(value, "receipt"))


def _receipt_of(document: _Reader) -> Receipt:
    if document.number("v", 255) != 1:
        raise InvalidInput("receipt/v: only version 1 is known", field="receipt/v")
    model = document.inside("model")
    publisher, slash, name = model.text("name", longest=129).partition("/")
    if not slash or not _NAME.match(publisher) or not _NAME.match(name):
        raise InvalidInput("receipt/model/name: publisher/name wanted", field="receipt/model/name")
    reference = ModelRef(publisher, name, model.number("version", 2**31 - 1), Hash32(model.data("sha256", 32)))
    model.done()
    execution = document.inside("execution")
    ran = Execution(
        execution.text("engine"),
        execution.text("provider"),
        Hash32(execution.data("profile", 32)) if execution.has("profile") else None,
        execution.text("relayed") if execution.has("relayed") else None,
    )
    execution.done()
    usage = document.inside("usage")
    prompt, completion, rows = (usage.number(name) for name in ("promptTokens", "completionTokens", "rows"))
    usage.done()
    price: Price | None = None
    if document.has("price"):
        paid = document.inside("price")
        price = Price(
            int(paid.text("amount", _AMOUNT)),
            Address(paid.data("asset", 20)),
            paid.text("network", _NETWORK),
            Address(paid.data("payer", 20)),
            paid.text("paymentId", longest=128),
        )
        paid.done()
    jurisdiction: str | None = None
    if document.has("jurisdiction"):
        declared = document.inside("jurisdiction")
        jurisdiction = declared.text("declared", _JURISDICTION)
        declared.done()
    try:
        mode, finish = Mode(document.text("mode")), Finish(document.text("finishReason"))
    except ValueError as error:
        raise InvalidInput(f"receipt: {error}", field="receipt") from None
    receipt = Receipt(
        id=Hash32(document.data("id", 32)),
        surface=document.text("surface", longest=32),
        request_sha256=Hash32(document.data("requestSha256", 32)),
        response_sha256=Hash32(document.data("responseSha256", 32)),
        model=reference,
        mode=mode,
        execution=ran,
        prompt_tokens=prompt,
        completion_tokens=completion,
        rows=rows,
        finish=finish,
        started_at=document.number("startedAt"),
        finished_at=document.number("finishedAt"),
        node=Address(document.data("node", 20)) if document.has("node") else None,
        key_id=Hash32(document.data("keyId", 32)),
        price=price,
        client_nonce=Hash32(document.data("clientNonce", 32)) if document.has("clientNonce") else None,
        evidence_sha256=Hash32(document.data("evidenceSha256", 32)) if document.has("evidenceSha256") else None,
        jurisdiction=jurisdiction,
        signature=document.data("signature", 64) if document.has("signature") else b"",
    )
    document.done()
    return receipt


# --- what a receipt is over


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """A tensor in a digested document: its data by sha-256 of the dense little-endian bytes, so JSON and binary requests digest alike."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data_sha256: Hash32


def tensors_document(tensors: Sequence[TensorDigest]) -> list[dict[str, Any]]:
    """Tensors as JSON values."""
    return [
        {"name": item.name, "datatype": item.datatype, "shape": list(item.shape), "dataSha256": hex0x(item.data_sha256)} for item in tensors
    ]


def request_digest(surface: str, model: str, body: Any) -> Hash32:
    """The digest of a request: sha-256 of the canonical JSON of {surface, model, body}. `body` is the request as the caller sent it; for
    tensors with `tensors_document` in place of the inputs' data.

    Raises:
        InvalidInput: it has no canonical form (NaN, integers beyond 2^53).
    """
    return _digest({"surface": surface, "model": model, "body": body}, "request")


def response_digest(body: Any) -> Hash32:
    """The digest of an answer: sha-256 of the canonical JSON of its body without the member `placet`."""
    return _digest(body, "response")


def _digest(value: Any, field: str) -> Hash32:
    try:
        return Hash32(hashlib.sha256(rfc8785.dumps(value)).digest())
    except rfc8785.CanonicalizationError as error:
        raise InvalidInput(f"{field}: no canonical form: {error}", field=field) from None
