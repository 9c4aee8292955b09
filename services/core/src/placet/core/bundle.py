"""A policy with everything its id covers, as it lies in the object store.

The bundle is one JSON document naming blobs by sha256; who loads it checks that the content makes the policy id that was asked for, so
neither the bus nor the store needs trust.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from placet.core import calls, jsonx, limits
from placet.core.digests import policy_data_id, policy_id
from placet.core.errors import InvalidInput, PlacetError, TooLarge, VerificationFailed
from placet.core.objects import ObjectStore
from placet.core.types import (
    ZERO_ADDRESS,
    ArgumentBinding,
    BindingSource,
    GovernedCall,
    Hash32,
    Ordering,
    Policy,
    RegoModule,
    address_from,
    hash_from,
    hex0x,
)

MAX_BUNDLE_DOCUMENT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PolicyDataArtefact:
    """One PolicyData: the component's bytes and its manifest's."""

    component: bytes
    manifest: bytes

    @property
    def id(self) -> Hash32:
        """policyDataId."""
        return policy_data_id(self.component, self.manifest)


@dataclass(frozen=True, slots=True)
class PolicyBundle:
    """A policy and the artefacts behind its policyDataIds, in their order."""

    policy: Policy
    policy_data: tuple[PolicyDataArtefact, ...]

    @property
    def id(self) -> Hash32:
        """policyId."""
        return policy_id(self.policy)

    @property
    def size(self) -> int:
        """Bytes of its blobs."""
        policy = self.policy
        return (
            sum(len(item.component) + len(item.manifest) for item in self.policy_data)
            + sum(len(module.source) for module in policy.modules)
            + len(policy.params)
            + len(policy.schema)
            + len(policy.inference)
        )


def check_bundle(bundle: PolicyBundle) -> None:
    """Bounds and consistency of a policy; what the sandbox checks (Rego, manifests, components) comes on top.

    Raises:
        InvalidInput: naming the member.
    """
    policy = bundle.policy
    _between("modules", len(policy.modules), 1, limits.MAX_MODULES)
    names = [module.name for module in policy.modules]
    if names != sorted(set(names)):
        raise InvalidInput("modules: names must be unique and sorted", field="modules")
    for module in policy.modules:
        _between(f"modules/{module.name}", len(module.source), 1, limits.MAX_MODULE_BYTES)
        if not module.name.endswith(".rego") or len(module.name) > 128:
            raise InvalidInput(f"modules: {module.name[:80]!r} must end in .rego and have at most 128 characters", field="modules")
    if not policy.entrypoint.startswith("data.") or len(policy.entrypoint) > 256:
        raise InvalidInput("entrypoint: a rule path such as data.vault.decision wanted", field="entrypoint")
    params = jsonx.parse(policy.params, field="params", max_bytes=limits.MAX_PARAMS_BYTES, max_depth=16)
    if not isinstance(params, dict):
        raise InvalidInput("params: an object wanted", field="params")
    jsonx.parse(policy.schema, field="schema", max_bytes=limits.MAX_SCHEMA_BYTES, max_depth=32)
    _between("policyDataIds", len(policy.policy_data_ids), 0, limits.MAX_POLICY_DATA)
    if tuple(item.id for item in bundle.policy_data) != policy.policy_data_ids:
        raise InvalidInput("policyData: the artefacts are not those of the policyDataIds", field="policyData")
    for item in bundle.policy_data:
        _between("component", len(item.component), 8, limits.MAX_COMPONENT_BYTES)
        _between("manifest", len(item.manifest), 2, limits.MAX_MANIFEST_BYTES)
    _between("bindings", len(policy.bindings), 0, limits.MAX_BINDINGS)
    seen: set[tuple[int, str]] = set()
    for binding in policy.bindings:
        _between("bindings/policyData", binding.policy_data, 0, len(policy.policy_data_ids) - 1)
        if (binding.policy_data, binding.name) in seen or not binding.name or len(binding.name) > 64:
            raise InvalidInput(f"bindings: {binding.name[:64]!r} is bound twice or has no proper name", field="bindings")
        seen.add((binding.policy_data, binding.name))
        if binding.source is BindingSource.CONST:
            jsonx.parse(binding.value.encode(), field="bindings/value", max_bytes=4096, max_depth=8)
        elif len(binding.value) > 256:
            raise InvalidInput("bindings: a pointer or name has at most 256 characters", field="bindings")
    calls.check_calls(policy.calls)
    _between("validFor", policy.valid_for, limits.MIN_VALID_FOR_S, limits.MAX_VALID_FOR_S)
    _between("retryAfter", policy.retry_after, 0, limits.MAX_RETRY_AFTER_S)
    _between("regoFuel", policy.rego_fuel, limits.MIN_REGO_FUEL, limits.MAX_REGO_FUEL)
    _between("regoMemory", policy.rego_memory, limits.MIN_REGO_MEMORY, limits.MAX_REGO_MEMORY)
    if policy.inference:
        raise InvalidInput("inference: requirements are not supported yet", field="inference")


def _between(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidInput(f"{field}: {value} is outside {low}..{high}", field=field)


async def store_bundle(store: ObjectStore, bundle: PolicyBundle) -> Hash32:
    """Put a bundle and its blobs into the store; returns the bundle document's address."""
    policy = bundle.policy
    document: dict[str, Any] = {
        "version": 1,
        "modules": [{"name": module.name, "sha256": hex0x(await store.put(module.source))} for module in policy.modules],
        "entrypoint": policy.entrypoint,
        "params": hex0x(await store.put(policy.params)),
        "schema": hex0x(await store.put(policy.schema)),
        "inference": hex0x(await store.put(policy.inference)),
        "policyData": [
            {"component": hex0x(await store.put(item.component)), "manifest": hex0x(await store.put(item.manifest))}
            for item in bundle.policy_data
        ],
        "bindings": [{"policyData": b.policy_data, "name": b.name, "source": int(b.source), "value": b.value} for b in policy.bindings],
        "calls": [{"self": c.to_self, "target": hex0x(c.target), "signature": c.signature, "unpack": c.unpack} for c in policy.calls],
        "ordering": int(policy.ordering),
        "validFor": policy.valid_for,
        "retryAfter": policy.retry_after,
        "engineSha256": hex0x(policy.engine_sha256),
        "regoFuel": policy.rego_fuel,
        "regoMemory": policy.rego_memory,
    }
    return await store.put(jsonx.canonical(document))


async def load_bundle(store: ObjectStore, address: Hash32, wanted: Hash32) -> PolicyBundle:
    """Load the policy `wanted` from the bundle at `address`, and check that it is that policy and within bounds.

    Raises:
        InvalidInput, VerificationFailed: it is not, or is malformed.
        NotFound, Unavailable: the store lacks a blob, or does not answer.
    """
    raw = await store.get(address, max_bytes=MAX_BUNDLE_DOCUMENT_BYTES)
    document = jsonx.parse(raw, field="bundle", max_bytes=MAX_BUNDLE_DOCUMENT_BYTES, max_depth=8)

    left = limits.MAX_BUNDLE_BYTES

    async def blob(text: Any, max_bytes: int) -> bytes:
        nonlocal left
        try:
            found = await store.get(hash_from(text, field="bundle/sha256"), max_bytes=min(max_bytes, left))
        except TooLarge:
            if left < max_bytes:
                raise TooLarge(f"bundle: more than {limits.MAX_BUNDLE_BYTES} bytes in all", field="bundle") from None
            raise
        left -= len(found)
        return found

    try:
        _between("modules", len(document["modules"]), 1, limits.MAX_MODULES)
        _between("policyData", len(document["policyData"]), 0, limits.MAX_POLICY_DATA)
        artefacts = tuple(
            [
                PolicyDataArtefact(
                    await blob(item["component"], limits.MAX_COMPONENT_BYTES), await blob(item["manifest"], limits.MAX_MANIFEST_BYTES)
                )
                for item in document["policyData"]
            ]
        )
        policy = Policy(
            modules=tuple([RegoModule(str(m["name"]), await blob(m["sha256"], limits.MAX_MODULE_BYTES)) for m in document["modules"]]),
            entrypoint=str(document["entrypoint"]),
            params=await blob(document["params"], limits.MAX_PARAMS_BYTES),
            schema=await blob(document["schema"], limits.MAX_SCHEMA_BYTES),
            policy_data_ids=tuple(item.id for item in artefacts),
            bindings=tuple(
                ArgumentBinding(int(b["policyData"]), str(b["name"]), BindingSource(b["source"]), str(b["value"]))
                for b in document["bindings"]
            ),
            calls=tuple(
                GovernedCall(
                    bool(c["self"]), ZERO_ADDRESS if c["self"] else address_from(c["target"]), str(c["signature"]), str(c["unpack"])
                )
                for c in document["calls"]
            ),
            ordering=Ordering(document["ordering"]),
            valid_for=int(document["validFor"]),
            retry_after=int(document["retryAfter"]),
            inference=await blob(document["inference"], 1 << 20),
            engine_sha256=hash_from(document["engineSha256"]),
            rego_fuel=int(document["regoFuel"]),
            rego_memory=int(document["regoMemory"]),
        )
    except PlacetError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(f"bundle: not of the expected form ({type(error).__name__}: {error})", field="bundle") from None
    bundle = PolicyBundle(policy, artefacts)
    if bundle.id != wanted:
        raise VerificationFailed("the bundle holds another policy than the one named", field="policyId")
    check_bundle(bundle)
    return bundle
