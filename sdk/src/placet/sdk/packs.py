"""Policy packs: a folder with Rego, PolicyData, a manifest and tests, and the policy it makes.

`policy.toml` names everything; a pack is published with its own params or with others of the same schema. docs/how-to/write-a-policy.md
walks through one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from placet.core import jsonx, limits
from placet.core.bundle import PolicyBundle, PolicyDataArtefact, check_bundle
from placet.core.errors import InvalidInput
from placet.core.types import (
    ZERO_ADDRESS,
    ArgumentBinding,
    BindingSource,
    GovernedCall,
    Ordering,
    Policy,
    RegoModule,
    address_from,
    hash_from,
)
from placet.sandbox.rego import engine_sha256

_MEMBERS = {
    "name",
    "description",
    "entrypoint",
    "modules",
    "tests",
    "params",
    "schema",
    "ordering",
    "valid_for",
    "retry_after",
    "rego_fuel",
    "rego_memory",
    "calls",
    "policy_data",
}
_DATA_MEMBERS = {"component", "manifest", "bindings", "source"}
_SOURCE_MEMBERS = {"language", "path", "imports"}
LANGUAGES = ("javascript", "python", "rust")
INTERFACES = ("http", "secrets", "clock", "chain", "tlsn")


@dataclass(frozen=True, slots=True)
class ComponentSource:
    """What a component is built from. `path` is a file (JavaScript, Python) or a crate's folder (Rust) inside the pack.

    `imports` are the interfaces of its world that it may use: it is built with these and no others.
    """

    language: str
    path: str
    imports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PackData:
    """One PolicyData of a pack: its files, relative to the pack's folder."""

    component: str
    manifest: str
    source: ComponentSource | None


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack read from its folder."""

    folder: Path
    name: str
    bundle: PolicyBundle
    tests: Mapping[str, str]
    data: tuple[PackData, ...] = ()


def _inside(name: Any, field: str) -> str:
    if not isinstance(name, str) or not name or name.startswith("/") or ".." in Path(name).parts:
        raise InvalidInput(f"{field}: a file inside the pack wanted", field=field)
    return name


def _file(folder: Path, name: Any, field: str, max_bytes: int) -> bytes:
    path = folder / _inside(name, field)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise InvalidInput(f"{field}: {name} has {size} bytes, at most {max_bytes}", field=field)
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{field}: {name}: {error.strerror}", field=field) from None


def _binding(position: int, name: str, value: Any) -> ArgumentBinding:
    if not isinstance(value, dict) or len(value) != 1:
        raise InvalidInput(f"bindings/{name}: one of const, params, intent, caller wanted", field="bindings")
    ((kind, source),) = value.items()
    kinds = {"const": BindingSource.CONST, "params": BindingSource.PARAMS, "intent": BindingSource.INTENT, "caller": BindingSource.CALLER}
    if kind not in kinds:
        raise InvalidInput(f"bindings/{name}: one of {', '.join(kinds)} wanted", field="bindings")
    text = orjson.dumps(source).decode() if kind == "const" else str(source)
    return ArgumentBinding(position, name, kinds[kind], text)


def _document(folder: Path) -> dict[str, Any]:
    if not (folder / "policy.toml").is_file():
        raise InvalidInput(f"{folder} is no pack: it has no policy.toml (`placet policy init` makes one)", field="policy.toml")
    try:
        document = tomllib.loads(_file(folder, "policy.toml", "policy.toml", 64 << 10).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"policy.toml: {error}", field="policy.toml") from None
    _known(document, _MEMBERS, "policy.toml")
    return document


def _known(document: Any, members: set[str], field: str) -> None:
    if not isinstance(document, dict):
        raise InvalidInput(f"{field}: a table wanted", field=field)
    if unknown := sorted(set(document) - members):
        raise InvalidInput(f"{field}: {unknown[0]!r} is not known; known are {', '.join(sorted(members))}", field=unknown[0])


def _data(item: Any) -> PackData:
    _known(item, _DATA_MEMBERS, "policy_data")
    source = None
    if "source" in item:
        _known(item["source"], _SOURCE_MEMBERS, "policy_data.source")
        language, imports = item["source"]["language"], item["source"].get("imports", [])
        if language not in LANGUAGES:
            raise InvalidInput(f"policy_data.source: language {language!r} is none of {', '.join(LANGUAGES)}", field="language")
        if not isinstance(imports, list) or not set(imports) <= set(INTERFACES):
            raise InvalidInput(f"policy_data.source: imports are some of {', '.join(INTERFACES)}", field="imports")
        source = ComponentSource(language, _inside(item["source"]["path"], "policy_data.source.path"), tuple(sorted(imports)))
    return PackData(_inside(item["component"], "policy_data.component"), _inside(item["manifest"], "policy_data.manifest"), source)


def pack_data(folder: Path) -> tuple[PackData, ...]:
    """The PolicyData of a pack, whether they are built already or not.

    Raises:
        InvalidInput: naming the member and what is wrong with it.
    """
    try:
        return tuple(_data(item) for item in _document(folder).get("policy_data", []))
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"policy.toml: {type(error).__name__}: {error}", field="policy.toml") from None


def with_hosts(manifest: bytes, hosts: Sequence[str]) -> bytes:
    """A manifest that allows `hosts` and no others: another manifest, hence another policyDataId."""
    document = jsonx.parse(manifest, field="manifest", max_bytes=limits.MAX_MANIFEST_BYTES)
    if not isinstance(document, dict):
        raise InvalidInput("manifest: an object wanted", field="manifest")
    return jsonx.canonical({**document, "allowed_hosts": list(hosts)})


def load_pack(
    folder: Path,
    *,
    params: Mapping[str, Any] | None = None,
    calls: list[dict[str, str]] | None = None,
    allowed_hosts: Sequence[str] | None = None,
) -> Pack:
    """Read and check a pack. `params` replaces its params, `calls` its governed calls (an executor wallet's targets, for instance),
    `allowed_hosts` the hosts that its components may fetch (for development: `localhost:<port>`).

    Raises:
        InvalidInput: naming the member and what is wrong with it.
    """
    document = _document(folder)
    try:
        artefacts, bindings, data = [], [], []
        for position, item in enumerate(document.get("policy_data", [])):
            described = _data(item)
            if not (folder / described.component).exists() and described.source is not None:
                raise InvalidInput(
                    f"policy_data: {described.component} is not built: run `placet policy build {folder}`", field="policy_data"
                )
            manifest = _file(folder, described.manifest, "policy_data/manifest", limits.MAX_MANIFEST_BYTES)
            artefacts.append(
                PolicyDataArtefact(
                    _file(folder, described.component, "policy_data/component", limits.MAX_COMPONENT_BYTES),
                    manifest if allowed_hosts is None else with_hosts(manifest, allowed_hosts),
                )
            )
            data.append(described)
            bindings += [_binding(position, name, value) for name, value in sorted(item.get("bindings", {}).items())]
        raw_params = _file(folder, document["params"], "params", limits.MAX_PARAMS_BYTES) if params is None else jsonx.canonical(params)
        modules = [RegoModule(name, _file(folder, name, "modules", limits.MAX_MODULE_BYTES)) for name in sorted(document["modules"])]
        policy = Policy(
            modules=tuple(modules),
            entrypoint=document["entrypoint"],
            params=raw_params,
            schema=_file(folder, document["schema"], "schema", limits.MAX_SCHEMA_BYTES),
            policy_data_ids=tuple(item.id for item in artefacts),
            bindings=tuple(bindings),
            calls=tuple(
                GovernedCall(
                    call["target"] == "self",
                    ZERO_ADDRESS if call["target"] == "self" else address_from(call["target"], field="calls/target"),
                    call["function"],
                    call.get("unpack", ""),
                )
                for call in (document["calls"] if calls is None else calls)
            ),
            ordering=Ordering[document["ordering"].upper()],
            valid_for=int(document["valid_for"]),
            retry_after=int(document.get("retry_after", 0)),
            inference=b"",
            engine_sha256=hash_from("0x" + engine_sha256()),
            rego_fuel=int(document.get("rego_fuel", 2_000_000_000)),
            rego_memory=int(document.get("rego_memory", 64 << 20)),
        )
        tests = {name: _file(folder, name, "tests", limits.MAX_MODULE_BYTES).decode() for name in document.get("tests", [])}
        name = str(document["name"])
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"policy.toml: {type(error).__name__}: {error}", field="policy.toml") from None
    bundle = PolicyBundle(policy, tuple(artefacts))
    check_bundle(bundle)
    return Pack(folder, name, bundle, tests, tuple(data))
