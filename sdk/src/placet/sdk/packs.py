"""Policy packs: a folder with Rego, PolicyData, a manifest and tests, and the policy it makes.

`policy.toml` names everything; a pack is published with its own params or with others of the same schema.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
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


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack read from its folder."""

    folder: Path
    name: str
    bundle: PolicyBundle
    tests: Mapping[str, str]


def _file(folder: Path, name: Any, field: str, max_bytes: int) -> bytes:
    if not isinstance(name, str) or name.startswith("/") or ".." in Path(name).parts:
        raise InvalidInput(f"{field}: a file inside the pack wanted", field=field)
    path = folder / name
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


def load_pack(folder: Path, *, params: Mapping[str, Any] | None = None, calls: list[dict[str, str]] | None = None) -> Pack:
    """Read and check a pack. `params` replaces its params, `calls` its governed calls (an executor wallet's targets, for instance).

    Raises:
        InvalidInput: naming the member and what is wrong with it.
    """
    try:
        document = tomllib.loads(_file(folder, "policy.toml", "policy.toml", 64 << 10).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"policy.toml: {error}", field="policy.toml") from None
    unknown = set(document) - _MEMBERS
    if unknown:
        raise InvalidInput(f"policy.toml: {sorted(unknown)[0]!r} is not known", field=sorted(unknown)[0])
    try:
        artefacts, bindings = [], []
        for position, item in enumerate(document.get("policy_data", [])):
            artefacts.append(
                PolicyDataArtefact(
                    _file(folder, item["component"], "policy_data/component", limits.MAX_COMPONENT_BYTES),
                    _file(folder, item["manifest"], "policy_data/manifest", limits.MAX_MANIFEST_BYTES),
                )
            )
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
    return Pack(folder, name, bundle, tests)
