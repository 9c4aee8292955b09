"""The Model Hub's documents: names, manifests, prices, and the statements by which a publisher acts. Specified in docs/reference/models.md.

All of them are canonical JSON (RFC 8785) without fractions. A manifest's digest is what receipts and policies name as "the model".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

import rfc8785

from placet.core import jsonx
from placet.core.errors import InvalidInput
from placet.core.keccak import keccak256
from placet.core.types import Address, Hash32, hash_from, hex0x

MAX_MANIFEST_BYTES = 256 << 10
MAX_FILES = 64
MAX_TENSORS = 64
MAX_RANK = 16
MAX_DESCRIPTION = 4_096
MAX_STATEMENT_BYTES = 16_384
STATEMENT_VALID_FOR_S = 300
"""A statement says when it was made, and is taken once, within this time."""

_PART = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z")
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,127}){0,3}\Z")
_AMOUNT = re.compile(r"(?:0|[1-9][0-9]{0,38})\Z")
_NETWORK = re.compile(r"eip155:[1-9][0-9]{0,19}\Z")


def check_part(value: Any, name: str) -> str:
    """A publisher's or a model's name. Raises InvalidInput."""
    if not isinstance(value, str) or not _PART.match(value) or ".." in value:
        raise InvalidInput(f"{name}: 1 to 64 of a-z, 0-9, '.', '_', '-', first and last a letter or digit", field=name)
    return value


def check_alias(value: Any, name: str = "alias") -> str:
    """An alias, for instance `prod`. Raises InvalidInput."""
    if not isinstance(value, str) or not _ALIAS.match(value):
        raise InvalidInput(f"{name}: 1 to 32 of a-z, 0-9, '-', first a letter", field=name)
    return value


DEFAULT_ALIAS = "prod"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a caller names: `publisher/name`, with `@alias` or `@version`; without either the alias `prod`."""

    publisher: str
    name: str
    alias: str | None = DEFAULT_ALIAS
    version: int | None = None

    def __str__(self) -> str:
        return f"{self.publisher}/{self.name}@{self.alias if self.version is None else self.version}"


def parse_reference(text: Any, name: str = "model") -> Reference:
    """A reference from its text.

    Raises:
        InvalidInput: not of the form.
    """
    if not isinstance(text, str) or len(text) > 200:
        raise InvalidInput(f"{name}: publisher/model, publisher/model@alias or publisher/model@version wanted", field=name)
    path, at, which = text.partition("@")
    publisher, slash, model = path.partition("/")
    if not slash:
        raise InvalidInput(f"{name}: publisher/model wanted", field=name)
    check_part(publisher, name), check_part(model, name)
    if not at:
        return Reference(publisher, model)
    if re.fullmatch(r"[1-9][0-9]{0,8}", which):
        return Reference(publisher, model, None, int(which))
    return Reference(publisher, model, check_alias(which, name))


class Kind(StrEnum):
    """What a model takes and gives."""

    TENSORS = "tensors"
    TEXT = "text"
    EMBEDDING = "embedding"
    UPSTREAM = "upstream"
    """No files: requests are relayed to an OpenAI-style service, and receipts say so."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a model, by content."""

    path: str
    sha256: Hash32
    size: int


@dataclass(frozen=True, slots=True)
class Spec:
    """An input or output: a datatype of the Open Inference Protocol, -1 for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """An immutable version of a model."""

    publisher: str
    name: str
    version: int
    kind: Kind
    files: tuple[File, ...]
    inputs: tuple[Spec, ...] = ()
    outputs: tuple[Spec, ...] = ()
    opsets: Mapping[str, int] = field(default_factory=dict)
    ops: tuple[str, ...] = ()
    parameters: int = 0
    dynamic_quantisation: bool = False
    context_length: int | None = None
    dimensions: int | None = None
    description: str = ""
    license: str = ""
    zk_network_sha256: Hash32 | None = None
    """Published for mode zkml: the network that proofs are about (docs/reference/zkml.md)."""


def manifest_document(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON values."""
    document: dict[str, Any] = {
        "v": 1,
        "publisher": manifest.publisher,
        "name": manifest.name,
        "version": manifest.version,
        "kind": manifest.kind.value,
        "files": [{"path": item.path, "sha256": hex0x(item.sha256), "bytes": item.size} for item in manifest.files],
        "inputs": _specs(manifest.inputs),
        "outputs": _specs(manifest.outputs),
        "opsets": dict(manifest.opsets),
        "ops": list(manifest.ops),
        "parameters": manifest.parameters,
        "dynamicQuantisation": manifest.dynamic_quantisation,
        "description": manifest.description,
        "license": manifest.license,
    }
    if manifest.context_length is not None:
        document["contextLength"] = manifest.context_length
    if manifest.dimensions is not None:
        document["dimensions"] = manifest.dimensions
    if manifest.zk_network_sha256 is not None:
        document["zkNetworkSha256"] = hex0x(manifest.zk_network_sha256)
    return document


def _specs(specs: Sequence[Spec]) -> list[dict[str, Any]]:
    return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical bytes."""
    return rfc8785.dumps(manifest_document(manifest))


def manifest_digest(manifest: Manifest) -> Hash32:
    """sha-256 of the canonical bytes: the model's digest in receipts and policies."""
    return Hash32(hashlib.sha256(encode_manifest(manifest)).digest())


def decode_manifest(raw: bytes) -> Manifest:
    """A manifest from its canonical bytes; any other bytes of the same content are refused.

    Raises:
        InvalidInput: names the member.
    """
    value = jsonx.parse(raw, field="manifest", max_bytes=MAX_MANIFEST_BYTES, max_depth=5)
    manifest = manifest_of(value)
    if encode_manifest(manifest) != raw:
        raise InvalidInput("manifest: not canonical, or with members that are not known", field="manifest")
    return manifest


def manifest_of(value: Any) -> Manifest:
    """A manifest from JSON values. Raises InvalidInput."""
    try:
        if value["v"] != 1:
            raise InvalidInput("manifest: only version 1 is known", field="v")
        files = tuple(_file(item, at) for at, item in enumerate(_list(value["files"], "files", MAX_FILES)))
        if len({item.path for item in files}) != len(files):
            raise InvalidInput("files: a path stands twice", field="files")
        manifest = Manifest(
            publisher=check_part(value["publisher"], "publisher"),
            name=check_part(value["name"], "name"),
            version=_integer(value["version"], "version", 1, 10**9),
            kind=_kind(value["kind"]),
            files=files,
            inputs=tuple(_spec(item, "inputs", at) for at, item in enumerate(_list(value["inputs"], "inputs", MAX_TENSORS))),
            outputs=tuple(_spec(item, "outputs", at) for at, item in enumerate(_list(value["outputs"], "outputs", MAX_TENSORS))),
            opsets={_text(key, "opsets", 64): _integer(item, "opsets", 1, 1000) for key, item in value["opsets"].items()},
            ops=tuple(_text(item, "ops", 128) for item in _list(value["ops"], "ops", 512)),
            parameters=_integer(value["parameters"], "parameters", 0, 10**15),
            dynamic_quantisation=_boolean(value["dynamicQuantisation"], "dynamicQuantisation"),
            context_length=_integer(value["contextLength"], "contextLength", 1, 10**8) if "contextLength" in value else None,
            dimensions=_integer(value["dimensions"], "dimensions", 1, 10**6) if "dimensions" in value else None,
            description=_text(value["description"], "description", MAX_DESCRIPTION),
            license=_text(value["license"], "license", 128),
            zk_network_sha256=hash_from(value["zkNetworkSha256"], field="zkNetworkSha256") if "zkNetworkSha256" in value else None,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"manifest: {type(error).__name__}: {error}", field="manifest") from None
    return manifest


def _list(value: Any, name: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise InvalidInput(f"{name}: a list of at most {most} wanted", field=name)
    return value


def _text(value: Any, name: str, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest or any(ord(c) < 32 and c not in "\n\t" for c in value):
        raise InvalidInput(f"{name}: text of at most {longest} characters wanted", field=name)
    return value


def _integer(value: Any, name: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidInput(f"{name}: an integer from {least} to {most} wanted", field=name)
    return value


def _boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{name}: true or false wanted", field=name)
    return value


def _kind(value: Any) -> Kind:
    try:
        return Kind(value)
    except ValueError:
        raise InvalidInput(f"kind: one of {[kind.value for kind in Kind]}", field="kind") from None


def check_path(value: Any, name: str = "path") -> str:
    """A file's path inside a model: relative, without '..', at most four parts. Raises InvalidInput."""
    if not isinstance(value, str) or not _PATH.match(value) or ".." in PurePosixPath(value).parts:
        raise InvalidInput(f"{name}: a relative path of letters, digits, '.', '_', '-' wanted", field=name)
    return value


def _file(value: Any, at: int) -> File:
    digest = value["sha256"]
    if not isinstance(digest, str) or not re.fullmatch(r"0x[0-9a-f]{64}", digest):
        raise InvalidInput("files: sha256 is 32 bytes in lower-case 0x hex", field=f"files/{at}/sha256")
    path = check_path(value["path"], f"files/{at}/path")
    return File(path, Hash32(bytes.fromhex(digest[2:])), _integer(value["bytes"], f"files/{at}/bytes", 0, 1 << 40))


def _spec(value: Any, where: str, at: int) -> Spec:
    name = f"{where}/{at}"
    shape = _list(value["shape"], f"{name}/shape", MAX_RANK)
    sizes = tuple(_integer(size, f"{name}/shape", -1, 2**31 - 1) for size in shape)
    return Spec(_text(value["name"], f"{name}/name", 256), _text(value["datatype"], f"{name}/datatype", 8), sizes)


def breaking_changes(old: Manifest, new: Manifest) -> list[str]:
    """What a caller of `old` would notice of `new`: kinds, tensor names, types or shapes that differ."""
    out = []
    if old.kind is not new.kind:
        out.append(f"kind: {old.kind.value} was, {new.kind.value} is")
    for what, before, after in (("input", old.inputs, new.inputs), ("output", old.outputs, new.outputs)):
        was, now = {spec.name: spec for spec in before}, {spec.name: spec for spec in after}
        out += [f"{what} {name}: is gone" for name in was.keys() - now.keys()]
        out += [f"{what} {name}: is new" for name in now.keys() - was.keys()]
        for name in sorted(was.keys() & now.keys()):
            if was[name] != now[name]:
                out.append(
                    f"{what} {name}: {was[name].datatype}{list(was[name].shape)} was, {now[name].datatype}{list(now[name].shape)} is"
                )
    if old.dimensions != new.dimensions:
        out.append(f"dimensions: {old.dimensions} was, {new.dimensions} is")
    return out


def _type(spec: Spec) -> str:
    return f"{spec.datatype}{list(spec.shape)}"


# --- prices


@dataclass(frozen=True, slots=True)
class Rate:
    """Atomic units of the asset. Tokens are priced a million."""

    request: int = 0
    row: int = 0
    million_prompt_tokens: int = 0
    million_completion_tokens: int = 0

    def amount(self, *, prompt_tokens: int, completion_tokens: int, rows: int) -> int:
        """What this much costs; parts of a unit are rounded up, once."""
        tokens = prompt_tokens * self.million_prompt_tokens + completion_tokens * self.million_completion_tokens
        return self.request + rows * self.row + -(-tokens // 1_000_000)


@dataclass(frozen=True, slots=True)
class Prices:
    """What a model costs, in one asset. `modes` overrides `rate` for modes that cost more."""

    network: str
    asset: Address
    pay_to: Address
    rate: Rate
    modes: Mapping[str, Rate] = field(default_factory=dict)

    def rate_of(self, mode: str) -> Rate:
        """The rate of a mode."""
        return self.modes.get(mode, self.rate)


def prices_document(prices: Prices) -> dict[str, Any]:
    """Prices as JSON values."""
    return {
        "network": prices.network,
        "asset": hex0x(prices.asset),
        "payTo": hex0x(prices.pay_to),
        "rate": _rate_document(prices.rate),
        "modes": {mode: _rate_document(rate) for mode, rate in sorted(prices.modes.items())},
    }


_RATE = {
    "request": "request",
    "row": "row",
    "million_prompt_tokens": "millionPromptTokens",
    "million_completion_tokens": "millionCompletionTokens",
}


def _rate_document(rate: Rate) -> dict[str, str]:
    return {member: str(getattr(rate, name)) for name, member in _RATE.items()}


def prices_of(value: Any) -> Prices:
    """Prices from JSON values. Raises InvalidInput."""
    if not isinstance(value, dict) or set(value) != {"network", "asset", "payTo", "rate", "modes"}:
        raise InvalidInput("prices: an object with network, asset, payTo, rate and modes wanted", field="prices")
    if not isinstance(value["network"], str) or not _NETWORK.match(value["network"]):
        raise InvalidInput("prices/network: CAIP-2 wanted, for instance eip155:8453", field="prices/network")
    if not isinstance(value["modes"], dict) or not value["modes"].keys() <= {"vanilla", "tee", "zkml", "audited"}:
        raise InvalidInput("prices/modes: an object of vanilla, tee, zkml, audited wanted", field="prices/modes")
    return Prices(
        value["network"],
        _address(value["asset"], "prices/asset"),
        _address(value["payTo"], "prices/payTo"),
        _rate(value["rate"], "prices/rate"),
        {mode: _rate(rate, f"prices/modes/{mode}") for mode, rate in value["modes"].items()},
    )


def _rate(value: Any, name: str) -> Rate:
    if not isinstance(value, dict) or not value.keys() <= set(_RATE.values()):
        raise InvalidInput(f"{name}: an object of {sorted(_RATE.values())} wanted", field=name)
    amounts = {}
    for attribute, member in _RATE.items():
        text = value.get(member, "0")
        if not isinstance(text, str) or not _AMOUNT.match(text):
            raise InvalidInput(f"{name}/{member}: a decimal string of atomic units wanted", field=f"{name}/{member}")
        amounts[attribute] = int(text)
    return Rate(**amounts)


def _address(value: Any, name: str) -> Address:
    if not isinstance(value, str) or not re.fullmatch(r"0x[0-9a-fA-F]{40}", value):
        raise InvalidInput(f"{name}: an address wanted", field=name)
    return Address(bytes.fromhex(value[2:]))


# --- statements


class Action(StrEnum):
    """What a publisher may do."""

    CLAIM = "claim"
    PUBLISH = "publish"
    ALIAS = "alias"
    PRICE = "price"
    DEPRECATE = "deprecate"
    DELETE = "delete"
    TRANSFER = "transfer"


_MEMBERS: Mapping[Action, frozenset[str]] = {
    Action.CLAIM: frozenset(),
    Action.PUBLISH: frozenset({"name", "manifestSha256"}),
    Action.ALIAS: frozenset({"name", "alias", "version", "breaking"}),
    Action.PRICE: frozenset({"name", "prices"}),
    Action.DEPRECATE: frozenset({"name", "version", "reason"}),
    Action.DELETE: frozenset({"name", "version"}),
    Action.TRANSFER: frozenset({"to"}),
}


@dataclass(frozen=True, slots=True)
class Statement:
    """What a publisher says, as it was signed. `body` holds the action's own members."""

    hub: str
    action: Action
    publisher: str
    at: int
    nonce: Hash32
    body: Mapping[str, Any]

    @property
    def digest(self) -> Hash32:
        """Names the statement, so that it is taken once."""
        return Hash32(hashlib.sha256(encode_statement(self)).digest())


def encode_statement(statement: Statement) -> bytes:
    """The text that is signed: canonical JSON, so a wallet shows what is signed."""
    return rfc8785.dumps(
        {
            "placet": "hub/v1",
            "hub": statement.hub,
            "action": statement.action.value,
            "publisher": statement.publisher,
            "at": statement.at,
            "nonce": hex0x(statement.nonce),
            **statement.body,
        }
    )


def personal_digest(text: bytes) -> Hash32:
    """EIP-191 `personal_sign` digest of a text."""
    return Hash32(keccak256(b"\x19Ethereum Signed Message:\n" + str(len(text)).encode() + text))


def decode_statement(raw: bytes) -> Statement:
    """A statement from its signed text.

    Raises:
        InvalidInput: not of the form, or other members than the action's own.
    """
    value = jsonx.parse(raw, field="statement", max_bytes=MAX_STATEMENT_BYTES, max_depth=6)
    if not isinstance(value, dict) or value.get("placet") != "hub/v1":
        raise InvalidInput("statement: an object of placet hub/v1 wanted", field="statement")
    try:
        action = Action(str(value.get("action")))
    except ValueError:
        raise InvalidInput(f"action: one of {[action.value for action in Action]}", field="action") from None
    common = {"placet", "hub", "action", "publisher", "at", "nonce"}
    if set(value) != common | _MEMBERS[action]:
        raise InvalidInput(f"statement: the members of {action.value} are {sorted(common | _MEMBERS[action])}", field="statement")
    nonce = value["nonce"]
    if not isinstance(nonce, str) or not re.fullmatch(r"0x[0-9a-f]{64}", nonce):
        raise InvalidInput("nonce: 32 bytes in lower-case 0x hex wanted", field="nonce")
    statement = Statement(
        hub=_text(value["hub"], "hub", 128),
        action=action,
        publisher=check_part(value["publisher"], "publisher"),
        at=_integer(value["at"], "at", 0, 2**40),
        nonce=Hash32(bytes.fromhex(nonce[2:])),
        body={name: value[name] for name in _MEMBERS[action]},
    )
    if encode_statement(statement) != raw:
        raise InvalidInput("statement: not canonical JSON (RFC 8785)", field="statement")
    return statement
