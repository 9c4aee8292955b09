"""An httpx transport that hands over no answer whose receipt does not hold: every check of docs/reference/receipts.md, and the mode's own.

A one-piece answer is checked before any of it is handed over. A stream's pieces pass as they come, and its end is checked before it is
told: who sees `[DONE]` has read what the receipt is for. Only what was understood is handed on, written anew, so nobody reads another
answer than the one that was checked. Needs the extra `inference` of placet-sdk.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import struct
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import orjson

from placet.core.errors import InvalidInput, PlacetError, Unavailable, VerificationFailed
from placet.core.models import parse_reference
from placet.core.receipts import Mode, Receipt, TensorDigest, from_document, key_id_of, tensors_document
from placet.core.tensors import decode_request, from_json, shape_of
from placet.core.types import Address, Hash32, address_from, hash_from, hex0x
from placet.sdk.client import problem_error
from placet.sdk.paying import PURCHASE, PURCHASE_KEY, Purchase, gateway_url, is_stream
from placet.sdk.steps import AsyncTransport, Do, Read, Send, Step, Steps, Transport, Watch, plain, under, watched, with_body
from placet.sdk.streams import Assembly, Events, StreamRefused
from placet.verify import Expected, ReceiptKey, Report, verify_receipt
from placet.verify.audit import verify_audit

VERIFIED: Final = "placet_verified"
"""Extension of a response: what was `Verified`."""
_SURFACES: Final = {"/v1/chat/completions": "chat.completions", "/v1/completions": "completions", "/v1/embeddings": "embeddings"}
_SESSIONS = 1024


class ReceiptRejected(VerificationFailed):
    """An answer is not handed over, because a check of its receipt failed. `check` is its number in docs/reference/receipts.md (0: there is
    no receipt that can be read; of an audit 13 to 17), `what` its name, `report` all checks when they were made."""

    code = "receipt_rejected"
    http_status = 502

    def __init__(self, check: int, what: str, detail: str, report: Report | None = None) -> None:
        super().__init__(f"the answer is not handed over: check {check} ({what}) of its receipt failed: {detail}", check=check, what=what)
        self.check = check
        self.what = what
        self.report = report


class TrustOnFirstUse(UserWarning):
    """Keys are believed because the gateway says so, and from then on no others."""


class Keys:
    """Keys that may sign receipts: the root of everything that is verified. Those given, or, `first_use`, those that the gateway names when
    it is first asked, and never others after that. The latter trusts the gateway once: it warns, and `path` makes once mean once."""

    def __init__(self, pinned: Iterable[ReceiptKey] = (), *, first_use: bool = False, path: Path | None = None) -> None:
        self._keys = {key_id_of(key.public_key): key for key in pinned}
        self._first_use = first_use
        self._path = path
        self._lock = threading.Lock()
        if self._keys and first_use:
            raise InvalidInput("keys: either those that are given, or those of the first use", field="keys")
        if not self._keys and not first_use:
            raise InvalidInput("keys: none; give the nodes' receipt keys, or say that those of the first use are trusted", field="keys")

    @classmethod
    def of(cls, texts: Iterable[str]) -> Keys:
        """Ed25519 keys in 0x hex, as NodeRegistry has them. Raises InvalidInput."""
        return cls([ReceiptKey(hash_from(text, field="key")) for text in texts])

    def steps(self, gateway: httpx.URL, authorization: str | None) -> Generator[Step, Any, Mapping[Hash32, ReceiptKey]]:
        """The keys; asks the gateway when that is how they come. Raises PlacetError."""
        if not self._first_use:
            return self._keys
        with self._lock:
            known = self._keys or _pins(self._path).get(str(gateway), {})
        if not known:
            asked = yield from self._ask(gateway, authorization)
            known = yield Do(lambda: self._first(str(gateway), asked))
        self._keys = dict(known)
        return known

    def _first(self, gateway: str, asked: dict[Hash32, ReceiptKey]) -> Mapping[Hash32, ReceiptKey]:
        """Of several that ask at once, the first one's answer stands."""
        with self._lock:
            if not self._keys:
                self._keys = _pin(self._path, gateway, asked)
            return self._keys

    def _ask(self, gateway: httpx.URL, authorization: str | None) -> Generator[Step, Any, dict[Hash32, ReceiptKey]]:
        document = yield from _get(gateway, "/api/v1/nodes", {}, authorization)
        try:
            found = [
                ReceiptKey(hash_from(item["receiptKey"]), None if item.get("node") is None else address_from(item["node"]))
                for item in document["nodes"]
            ]
        except (KeyError, TypeError, AttributeError, InvalidInput):
            raise Unavailable("the gateway names no nodes in a form that is known") from None
        if not found:
            raise Unavailable("the gateway names no nodes, so nobody's receipts could be believed")
        text = f"receipt keys of {gateway} are trusted as it names them now: {', '.join(hex0x(key.public_key) for key in found)}"
        warnings.warn(text, TrustOnFirstUse, stacklevel=2)
        return {key_id_of(key.public_key): key for key in found}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it is sent: `document` is what its receipt's digest is over."""

    surface: str
    model: str
    sent: bytes
    document: Any
    mode: Mode
    nonce: Hash32 | None
    auditors: int
    max_price: int | None
    stream: bool
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """An answer whose receipt holds, and everything that was checked of it."""

    receipt: Receipt
    report: Report
    audit: Report | None = None
    level: str | None = None
    """What TEE evidence shows, for instance `hardware: Intel TDX`."""
    purchase: Purchase | None = None


@dataclass(frozen=True, slots=True)
class _Session:
    """A TEE's evidence that held: for one nonce, one key, one model."""

    key: ReceiptKey
    model_sha256: Hash32
    evidence_sha256: bytes
    level: str


class Verifier:
    """Checks one gateway's answers. Shared by transports, threads and tasks.

    `models` pins the manifest's digest of models by the name they are called by. `mode` is asked for where a request names none.
    `tee_policy`: which evidence counts (`placet.verify.tee.parse_policy` of a policy file); without it mode tee is refused before anything
    is sent. `charged` is told what a receipt says that a purchase cost; `on_verified` is given every answer that held.
    """

    def __init__(
        self,
        gateway: str,
        keys: Keys,
        *,
        mode: Mode | None = None,
        models: Mapping[str, Hash32] | None = None,
        tee_policy: Any = None,
        charged: Callable[[Purchase, int], None] | None = None,
        on_verified: Callable[[Verified], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.gateway = gateway_url(gateway)
        self._keys = keys
        self._mode = mode
        self._models = dict(models or {})
        self._policy = tee_policy
        self._charged = charged
        self._on_verified = on_verified
        self._clock = clock
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()

    def steps(self, request: httpx.Request, body: bytes) -> Steps:
        """A request's conversation.

        Raises:
            ReceiptRejected: names the check. TeeRejected, TeeUnverifiable: the evidence does not hold; nothing was asked.
            InvalidInput: nothing on this path is verified, or the request has no canonical form.
        """
        path = under(self.gateway, request.url)
        if path is None:
            raise InvalidInput(f"{request.url.scheme}://{request.url.netloc.decode()} is not the gateway that is verified", field="url")
        surface = _surface_of(path)
        if request.method != "POST" or surface is None:
            if request.method == "POST" and path.startswith(("/v1/", "/v2/")) and path != "/v2/repository/index":
                raise InvalidInput(f"{path}: answers of this path have no receipt that could be verified", field="url")
            response: httpx.Response = yield Send(with_body(request, body))
            return response
        if "inference-header-content-length" in request.headers:
            raise InvalidInput("binary tensors are not verified here; send JSON", field="body")
        authorization = request.headers.get("authorization")
        asked = yield from self._prepare(surface, path, body, authorization)
        keys = yield from self._trusted(asked, authorization)  # before anything is paid
        same = hashlib.sha256(path.encode() + b"\0" + body).digest()
        response = yield Send(with_body(request, asked.sent, extensions={PURCHASE_KEY: same}))
        if not response.is_success:
            return response
        purchase: Purchase | None = response.extensions.get(PURCHASE)
        if purchase is not None and purchase.body != asked.sent:  # goes on with what was paid for before
            asked = _read(surface, path, purchase.body)
            keys = yield from self._trusted(asked, authorization)
        if is_stream(response) != asked.stream:
            yield Read(response)
            raise ReceiptRejected(6, "answer", "it is a stream and none was asked for, or the other way round")
        if asked.stream:
            return watched(response, _StreamCheck(self, asked, keys, purchase))
        content: bytes = yield Read(response)
        document, placet = _parts(surface, content)
        verified = self.judge(asked, keys, _digested(surface, document), placet, purchase)
        if surface == "tensors":
            _check_tensors_head(document, verified.receipt)
        yield Do(lambda: self.told(verified))
        return plain(response, orjson.dumps(document), **{VERIFIED: verified})

    # --- before

    def _prepare(self, surface: str, path: str, body: bytes, authorization: str | None) -> Generator[Step, Any, Asked]:
        nonce = secrets.token_bytes(32)
        document = _object(body)
        holder, wants = _wants(surface, document)
        if self._mode is not None and "mode" not in wants:
            wants["mode"] = self._mode.value
        wants.setdefault("nonce", hex0x(nonce))
        if wants.get("mode") == Mode.TEE.value:
            session_key = yield from self._attest(_model(surface, path, document), hash_from(wants["nonce"], field="nonce"), authorization)
            if wants.setdefault("key", hex0x(session_key)) != hex0x(session_key):
                raise Unavailable("the gateway gives evidence of another node than the one that was asked for")
        holder["placet"] = orjson.dumps(wants).decode() if surface == "tensors" else wants
        return _read(surface, path, orjson.dumps(document))

    def _attest(self, model: str, nonce: Hash32, authorization: str | None) -> Generator[Step, Any, Hash32]:
        if self._policy is None:
            raise InvalidInput("mode tee: say by a policy which evidence counts (tee_policy)", field="mode")
        from placet.verify.tee import Binding, decode_evidence, verify_evidence

        asked_at = int(self._clock())
        said = yield from _get(self.gateway, "/api/v1/attestation", {"nonce": hex0x(nonce), "model": model}, authorization)
        try:
            evidence = decode_evidence(orjson.dumps(said["evidence"]))
            signing, sha256 = hash_from(said["receiptKey"]), hash_from(said["modelSha256"])
            hpke = bytes.fromhex(said["hpkeKey"].removeprefix("0x"))
        except (KeyError, TypeError, AttributeError, ValueError):
            raise Unavailable("the gateway gives no evidence in a form that is known") from None
        binding = Binding(signing, nonce, sha256, hpke or None)
        attested = verify_evidence(evidence, binding=binding, policy=self._policy, at=int(self._clock()), nonce_at=asked_at)
        self._sessions[nonce] = _Session(ReceiptKey(signing), sha256, attested.evidence_sha256, attested.level)
        while len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)
        return key_id_of(signing)

    def _trusted(self, asked: Asked, authorization: str | None) -> Generator[Step, Any, Mapping[Hash32, ReceiptKey]]:
        """In mode tee the key that the evidence is for, and no other."""
        if asked.mode is Mode.TEE:
            session = self._session(asked)
            return {key_id_of(session.key.public_key): session.key}
        return (yield from self._keys.steps(self.gateway, authorization))

    def _session(self, asked: Asked) -> _Session:
        session = self._sessions.get(asked.nonce or b"")
        if session is None:
            raise ReceiptRejected(1, "key", "the evidence for this answer's key is not at hand any more")
        return session

    # --- after

    def judge(
        self, asked: Asked, keys: Mapping[Hash32, ReceiptKey], digested: Any, placet: Mapping[str, Any], purchase: Purchase | None
    ) -> Verified:
        """Every check of an answer. Raises ReceiptRejected."""
        try:
            receipt = from_document(placet.get("receipt"))
            audit = [from_document(item) for item in placet.get("audit") or []]
        except (InvalidInput, TypeError) as error:
            raise ReceiptRejected(0, "receipt", f"there is none that can be read ({error})") from None
        session = self._session(asked) if asked.mode is Mode.TEE else None
        expected = Expected(
            request=asked.document,
            model_name=asked.model,
            response=digested,
            model_sha256=self._models.get(asked.model) if session is None else session.model_sha256,
            mode=asked.mode,
            max_amount=asked.max_price if purchase is None else purchase.signed.maximum,
            payer=None if purchase is None else purchase.signed.key.payer,
            client_nonce=asked.nonce,
        )
        audited: Report | None = None
        try:
            report = verify_receipt(receipt, keys=keys, expected=expected)
            _demand_all(report)
            if asked.mode is Mode.AUDITED:
                told = digested if asked.surface in ("chat.completions", "completions") else None
                audited = verify_audit([receipt, *audit], keys=keys, expected=expected, at_least=asked.auditors, response=told)
                _demand_all(audited)
        except InvalidInput as error:
            raise ReceiptRejected(6, "answer", error.message) from None
        _demand(receipt.surface == asked.surface, 5, "request", f"the receipt is for {receipt.surface[:40]}, not {asked.surface}")
        name = f"{receipt.model.publisher}/{receipt.model.name}"
        _demand(_is_named(asked.names, name, receipt.model.version), 7, "model", f"answered by {name}@{receipt.model.version}")
        if purchase is not None:
            _check_price(receipt, purchase)
        if session is not None:
            same = receipt.evidence_sha256 == session.evidence_sha256
            _demand(same, 8, "mode", "the receipt names other evidence than the one that was verified")
        return Verified(receipt, report, audited, None if session is None else session.level, purchase)

    def told(self, verified: Verified) -> None:
        """An answer held: what it cost, and what it is, is passed on."""
        price = verified.receipt.price
        if self._charged is not None and verified.purchase is not None and price is not None:
            self._charged(verified.purchase, price.amount)
        if self._on_verified is not None:
            self._on_verified(verified)


class _StreamCheck(Watch):
    """Passes a stream's pieces on, and its end when the receipt over all of them holds."""

    def __init__(self, verifier: Verifier, asked: Asked, keys: Mapping[Hash32, ReceiptKey], purchase: Purchase | None) -> None:
        self._verifier, self._asked, self._keys, self._purchase = verifier, asked, keys, purchase
        self._events = Events()
        self._assembly = Assembly(chat=asked.surface == "chat.completions")
        self._held = False
        self._over = False

    def feed(self, data: bytes) -> bytes:
        out = b""
        try:
            for event in self._events.feed(data):
                if not self._over:
                    out += self._one(event)
        except StreamRefused as error:
            raise ReceiptRejected(6, "answer", str(error)) from None
        return out

    def _one(self, event: bytes) -> bytes:
        if event == b"[DONE]":
            if not self._held:
                raise ReceiptRejected(0, "receipt", "the stream ends without one")
            self._over = True
            return b"data: [DONE]\n\n"
        if self._held:
            raise ReceiptRejected(6, "answer", "there is more after the receipt")
        document = _object(event)
        if "error" in document:  # nothing that follows is an answer
            self._over = True
            return _event({"error": document["error"]})
        placet = document.pop("placet", None)
        self._assembly.add(document, last=placet is not None)
        if placet is None:
            return _event(document)
        if not isinstance(placet, dict):
            raise ReceiptRejected(0, "receipt", "there is none that can be read")
        verified = self._verifier.judge(self._asked, self._keys, self._assembly.whole(), placet, self._purchase)
        self._verifier.told(verified)
        self._held = True
        return _event({**document, "placet": placet})

    def end(self) -> bytes:
        if not self._over:
            raise ReceiptRejected(0, "receipt", "the stream breaks off" if self._held else "the stream ends without one")
        return b""

    def broken(self, error: BaseException) -> None:
        return None


class VerifyingTransport(Transport):
    """For `httpx.Client(transport=…)`. `inner`: a `PayingTransport`, or what talks to the gateway."""

    def __init__(self, verifier: Verifier, inner: httpx.BaseTransport | None = None) -> None:
        super().__init__(verifier.steps, inner)


class AsyncVerifyingTransport(AsyncTransport):
    """For `httpx.AsyncClient(transport=…)`. `inner`: an `AsyncPayingTransport`, or what talks to the gateway."""

    def __init__(self, verifier: Verifier, inner: httpx.AsyncBaseTransport | None = None) -> None:
        super().__init__(verifier.steps, inner)


# --- requests


def _surface_of(path: str) -> str | None:
    if path in _SURFACES:
        return _SURFACES[path]
    return "tensors" if path.startswith("/v2/models/") and path.endswith("/infer") else None


def _object(raw: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidInput("body: not JSON", field="body") from None
    if not isinstance(document, dict):
        raise InvalidInput("body: an object wanted", field="body")
    return document


def _wants(surface: str, document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What holds the member `placet`, and a copy of that member."""
    holder: Any = document
    if surface == "tensors":
        holder = document.setdefault("parameters", {})
    wants: Any = holder.get("placet") if isinstance(holder, dict) else None
    if isinstance(wants, str):
        wants = _object(wants.encode())
    if not isinstance(holder, dict) or (wants is not None and not isinstance(wants, dict)):
        raise InvalidInput("placet: an object wanted", field="placet")
    return holder, dict(wants or {})


def _model(surface: str, path: str, document: Mapping[str, Any]) -> str:
    if surface != "tensors":
        model = document.get("model")
        if not isinstance(model, str):
            raise InvalidInput("model: publisher/model wanted", field="model")
        return model
    parts = path.removeprefix("/v2/models/").removesuffix("/infer").split("/")
    if len(parts) == 4 and parts[2] == "versions":
        return f"{parts[0]}/{parts[1]}@{parts[3]}"
    if len(parts) != 2:
        raise InvalidInput("model: publisher/model wanted", field="model")
    return "/".join(parts)


def _read(surface: str, path: str, sent: bytes) -> Asked:
    """A request as it is sent. Raises InvalidInput."""
    document = _object(sent)
    _, wants = _wants(surface, document)
    model = _model(surface, path, document)
    try:
        mode = Mode(wants.get("mode", Mode.VANILLA.value))
        auditors, most = wants.get("auditors", 2), wants.get("max_price")
        names = (model, *(str(parse_reference(name)) for name in wants.get("models", [])))
        parse_reference(model)
        max_price = None if most is None else int(most)
        if not isinstance(auditors, int):
            raise ValueError
    except (ValueError, TypeError):
        raise InvalidInput("placet: mode, models, auditors or max_price is not of its form", field="placet") from None
    digested: Any = document
    if surface == "tensors":
        asked = decode_request(sent)
        inputs = [TensorDigest(item.name, item.datatype, item.shape, _sha256(item.data)) for item in asked.tensors]
        digested = {
            "inputs": tensors_document(inputs),
            "outputs": [item.name for item in asked.wanted],
            "parameters": dict(asked.parameters),
        }
    stream = document.get("stream") is True and surface in ("chat.completions", "completions")
    nonce = hash_from(wants["nonce"], field="placet/nonce") if "nonce" in wants else None
    return Asked(surface, model, sent, digested, mode, nonce, auditors, max_price, stream, names)


# --- answers


def _parts(surface: str, content: bytes) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """An answer, and what it says of its receipt."""
    try:
        document = _object(content)
        placet: Any = document.get("placet")
        if surface == "tensors":
            said: Any = document.get("parameters")
            said = said if isinstance(said, dict) else {}
            placet = {name: orjson.loads(said[f"placet_{name}"]) for name in ("receipt", "audit") if f"placet_{name}" in said}
    except (InvalidInput, orjson.JSONDecodeError) as error:
        raise ReceiptRejected(0, "receipt", f"the answer cannot be read ({type(error).__name__})") from None
    if not isinstance(placet, dict):
        raise ReceiptRejected(0, "receipt", "the answer has none")
    return document, placet


def _digested(surface: str, document: Mapping[str, Any]) -> Any:
    """What the receipt's digest of an answer is over."""
    body = {name: value for name, value in document.items() if name != "placet"}
    try:
        if surface == "embeddings":
            return {**body, "data": [_vector_digest(item) for item in body["data"]]}
        if surface == "tensors":
            return {"outputs": tensors_document([_tensor_digest(item) for item in body["outputs"]])}
    except (KeyError, TypeError, ValueError, InvalidInput, struct.error, OverflowError):
        raise ReceiptRejected(6, "answer", "it is not of its form") from None
    return body


def _vector_digest(item: Any) -> dict[str, Any]:
    if item.keys() != {"object", "index", "embedding"} or item["object"] != "embedding":
        raise ValueError
    vector = item["embedding"]
    if isinstance(vector, str):
        raw = base64.b64decode(vector, validate=True)
    else:
        raw = struct.pack(f"<{len(vector)}f", *vector)
        if list(struct.unpack(f"<{len(vector)}f", raw)) != vector:
            raise ValueError
    return {"index": item["index"], "embeddingSha256": hex0x(_sha256(raw))}


def _tensor_digest(item: Any) -> TensorDigest:
    if not item.keys() <= {"name", "datatype", "shape", "data"}:
        raise ValueError
    shape = shape_of(item["shape"], "shape")
    return TensorDigest(item["name"], item["datatype"], shape, _sha256(from_json(item["datatype"], shape, item["data"], "data")))


def _check_tensors_head(document: Mapping[str, Any], receipt: Receipt) -> None:
    said = (document.get("model_name"), document.get("model_version"))
    real = (f"{receipt.model.publisher}/{receipt.model.name}", str(receipt.model.version))
    _demand(said == real, 7, "model", "the answer names another model than its receipt")


def _sha256(data: bytes | memoryview) -> Hash32:
    return Hash32(hashlib.sha256(data).digest())


def _is_named(names: tuple[str, ...], name: str, version: int) -> bool:
    references = [parse_reference(item) for item in names]
    return any(f"{item.publisher}/{item.name}" == name and item.version in (None, version) for item in references)


def _check_price(receipt: Receipt, purchase: Purchase) -> None:
    price, offer = receipt.price, purchase.signed.offer
    same = price is not None and (price.asset, price.network, price.payment_id) == (offer.asset, offer.network, hex0x(purchase.id))
    _demand(same, 9, "price", "the receipt is for another payment, or for none")


def _demand(holds: bool, check: int, what: str, detail: str) -> None:
    if not holds:
        raise ReceiptRejected(check, what, detail)


def _demand_all(report: Report) -> None:
    for check in report.checks:
        if not check.ok:
            raise ReceiptRejected(check.number, check.what, check.detail, report)


def _event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


# --- what the gateway is asked besides


def _get(gateway: httpx.URL, path: str, query: Mapping[str, str], authorization: str | None) -> Generator[Step, Any, dict[str, Any]]:
    """A document of the gateway's. Raises PlacetError."""
    url = gateway.copy_with(path=gateway.path.rstrip("/") + path, params=dict(query) or None)
    headers = {"accept-encoding": "identity"} | ({} if authorization is None else {"authorization": authorization})
    response: httpx.Response = yield Send(httpx.Request("GET", url, headers=headers, extensions={"timeout": _TIMEOUT.as_dict()}))
    content: bytes = yield Read(response)
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        document = None
    if response.status_code != 200 or not isinstance(document, dict):
        error = problem_error(document, response.status_code)
        raise type(error)(f"{path}: {error.message}", field=error.field)
    return document


_TIMEOUT: Final = httpx.Timeout(60.0)


def _pins(path: Path | None) -> dict[str, dict[Hash32, ReceiptKey]]:
    """Keys of the first use, by gateway."""
    if path is None or not path.exists():
        return {}
    try:
        document = orjson.loads(path.read_bytes())
        return {
            gateway: {
                key_id_of(key.public_key): key for key in (ReceiptKey(hash_from(item["key"]), _address(item.get("node"))) for item in keys)
            }
            for gateway, keys in document.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, PlacetError):
        raise InvalidInput(f"{path}: holds no receipt keys in a form that is known; move it away to trust anew", field="keys") from None


def _address(value: Any) -> Address | None:
    return None if value is None else address_from(value)


def _pin(path: Path | None, gateway: str, keys: dict[Hash32, ReceiptKey]) -> dict[Hash32, ReceiptKey]:
    """Keep a gateway's keys; returns those that stand, which are others when some were kept already."""
    if path is None:
        return keys
    pins = _pins(path)
    if pins.get(gateway):
        return pins[gateway]
    document = {
        name: [{"key": hex0x(key.public_key), "node": None if key.node is None else hex0x(key.node)} for key in found.values()]
        for name, found in {**pins, gateway: keys}.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        fresh.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        fresh.replace(path)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}; keys that cannot be kept are not trusted", field="keys") from None
    return keys
