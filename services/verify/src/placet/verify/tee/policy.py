"""What evidence a caller accepts: a JSON file, parsed once into `TeePolicy`. The format is specified in docs/reference/tee.md.

Nothing is accepted that the file does not name: no kind, no measurement, no firmware status. The vendors' roots are the one default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from placet.core import jsonx, limits
from placet.core.errors import InvalidInput
from placet.verify.tee.evidence import EvidenceKind

UP_TO_DATE = "UpToDate"
TCB_STATUSES = (
    UP_TO_DATE,
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Unknown",
)
"""Intel's words; for sev-snp UpToDate, OutOfDate and Unknown. No policy can accept others, such as Revoked and TDRelaunchAdvised."""

PINNED_ROOTS: Mapping[EvidenceKind, frozenset[bytes]] = MappingProxyType(
    {
        kind: frozenset(bytes.fromhex(root) for root in roots)
        for kind, roots in {
            EvidenceKind.TDX: ["44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"],  # Intel SGX Root CA
            EvidenceKind.SGX: ["44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"],
            EvidenceKind.SEV_SNP: [
                "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",  # ARK-Milan
                "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",  # ARK-Genoa
                "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",  # ARK-Turin
            ],
            EvidenceKind.NITRO: ["641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"],  # aws.nitro-enclaves
            EvidenceKind.NVIDIA_GPU: ["102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"],  # NVIDIA Device Identity CA
            EvidenceKind.SOFTWARE_DEV: [],
        }.items()
    }
)
"""SHA-256 of the vendors' root certificates. software-dev has none: a policy pins the checkout's own Ed25519 key."""

_REGISTERS: Mapping[EvidenceKind, tuple[dict[str, int], dict[str, int]]] = {
    # kind: registers that every entry must name, registers that it may name, with their sizes in bytes
    EvidenceKind.TDX: (
        {"mr_td": 48, "rt_mr0": 48, "rt_mr1": 48, "rt_mr2": 48, "rt_mr3": 48},
        {"mr_seam": 48, "mr_config_id": 48, "mr_owner": 48, "mr_owner_config": 48},
    ),
    EvidenceKind.SGX: ({"mr_enclave": 32}, {"mr_signer": 32}),
    EvidenceKind.SEV_SNP: (
        {"measurement": 48},
        {"host_data": 32, "id_key_digest": 48, "author_key_digest": 48, "family_id": 16, "image_id": 16},
    ),
    EvidenceKind.NITRO: (
        {"pcr0": 48, "pcr1": 48, "pcr2": 48},
        {f"pcr{index}": 48 for index in range(3, 16)},
    ),
}
_PLATFORM_BYTES = {EvidenceKind.TDX: 16, EvidenceKind.SGX: 16, EvidenceKind.SEV_SNP: 64, EvidenceKind.NVIDIA_GPU: 32}
_PRODUCT = re.compile(r"[A-Z][a-z]{1,15}\Z")
_ADVISORY = re.compile(r"[A-Z0-9-]{1,40}\Z")
_TCB_PARTS = ("fmc", "bootloader", "tee", "snp", "microcode")
MAX_ENTRIES = 256
MAX_AGE_S = 366 * 24 * 3600


@dataclass(frozen=True, slots=True)
class KindPolicy:
    """What is accepted of one kind.

    Attributes:
        measurements: accepted if any entry's registers all have the values it gives.
        tcb_statuses, advisories: accepted statuses; accepted open advisories.
        platforms: ppid, chip_id or GPU identity digests; None: any.
        roots: SHA-256 of root certificates; for software-dev Ed25519 public keys.
        min_tcb_evaluation: least tcbEvaluationDataNumber of Intel's collateral, so that nobody serves an older verdict while it is in date.
        min_tcb: AMD product to least firmware versions; without an entry the status of evidence is Unknown.
        vmpls: privilege levels whose reports are accepted.
        crl_required: without the root's revocation list the evidence is unverifiable.
    """

    measurements: tuple[Mapping[str, bytes], ...] = ()
    tcb_statuses: frozenset[str] = frozenset({UP_TO_DATE})
    advisories: frozenset[str] = frozenset()
    platforms: frozenset[bytes] | None = None
    roots: frozenset[bytes] = frozenset()
    min_tcb_evaluation: int = 0
    min_tcb: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    vmpls: frozenset[int] = frozenset({0})
    crl_required: bool = False


@dataclass(frozen=True, slots=True)
class TeePolicy:
    """What evidence is accepted. A kind that is not in `kinds` is refused.

    Attributes:
        production: software-dev is refused, whatever `kinds` says.
        max_age_s: how old evidence may be; None: the nonce alone makes it fresh.
        require_gpu: evidence without a GPU's is refused.
    """

    kinds: Mapping[EvidenceKind, KindPolicy]
    production: bool = True
    max_age_s: int | None = None
    require_gpu: bool = False


def parse_policy(data: bytes) -> TeePolicy:
    """A policy from its file.

    Raises:
        InvalidInput: not of the form; `field` names the member.
        TooLarge: beyond a limit.
    """
    value = jsonx.parse(data, field="policy", max_bytes=limits.MAX_TEE_POLICY_BYTES, max_depth=8, max_values=16_384)
    members = _object(value, "policy", {"version", "production", "max_age_s", "require_gpu", "kinds"})
    if _integer(members.get("version"), "version", 1, 1) != 1:
        raise InvalidInput("version: only 1 is known", field="version")
    kinds: dict[EvidenceKind, KindPolicy] = {}
    for name, member in _object(members.get("kinds"), "kinds", set(EvidenceKind)).items():
        kind = EvidenceKind(name)
        kinds[kind] = _kind_policy(kind, member, f"kinds/{name}")
    if not kinds:
        raise InvalidInput("kinds: at least one kind wanted", field="kinds")
    require_gpu = _boolean(members.get("require_gpu", False), "require_gpu")
    if require_gpu and EvidenceKind.NVIDIA_GPU not in kinds:
        raise InvalidInput("require_gpu: kinds/nvidia-gpu must say what is accepted", field="require_gpu")
    age = members.get("max_age_s")
    return TeePolicy(
        MappingProxyType(kinds),
        _boolean(members.get("production", True), "production"),
        None if age is None else _integer(age, "max_age_s", 1, MAX_AGE_S),
        require_gpu,
    )


def _kind_policy(kind: EvidenceKind, value: Any, name: str) -> KindPolicy:
    allowed = {"roots"}
    if kind in _REGISTERS:
        allowed |= {"measurements"}
    if kind in _PLATFORM_BYTES:
        allowed |= {"platforms"}
    if kind in (EvidenceKind.TDX, EvidenceKind.SGX):
        allowed |= {"tcb_statuses", "advisories", "min_tcb_evaluation"}
    elif kind is EvidenceKind.SEV_SNP:
        allowed |= {"tcb_statuses", "min_tcb", "vmpls", "crl_required"}
    elif kind in (EvidenceKind.NITRO, EvidenceKind.NVIDIA_GPU):
        allowed |= {"crl_required"}
    members = _object(value, name, allowed)
    roots = _roots(kind, members, f"{name}/roots")
    measurements: tuple[Mapping[str, bytes], ...] = ()
    if kind in _REGISTERS:
        measurements = _measurements(kind, members.get("measurements"), f"{name}/measurements")
    platforms = members.get("platforms")
    return KindPolicy(
        measurements,
        frozenset(_texts(members.get("tcb_statuses", [UP_TO_DATE]), f"{name}/tcb_statuses", lambda text: text in TCB_STATUSES)),
        frozenset(_texts(members.get("advisories", []), f"{name}/advisories", lambda text: _ADVISORY.match(text) is not None)),
        None if platforms is None else frozenset(_digests(platforms, f"{name}/platforms", _PLATFORM_BYTES[kind])),
        roots,
        _integer(members.get("min_tcb_evaluation", 0), f"{name}/min_tcb_evaluation", 0, 2**31),
        _min_tcb(members.get("min_tcb", {}), f"{name}/min_tcb"),
        frozenset(
            _integer(item, f"{name}/vmpls/{index}", 0, 3) for index, item in enumerate(_filled(members.get("vmpls", [0]), f"{name}/vmpls"))
        ),
        _boolean(members.get("crl_required", kind is EvidenceKind.SEV_SNP), f"{name}/crl_required"),
    )


def _roots(kind: EvidenceKind, members: Mapping[str, Any], name: str) -> frozenset[bytes]:
    if "roots" in members:
        return frozenset(_digests(_filled(members["roots"], name), name, 32))
    if not PINNED_ROOTS[kind]:
        raise InvalidInput(f"{name}: the development attester's Ed25519 public key wanted, 64 hexadecimal digits", field=name)
    return PINNED_ROOTS[kind]


def _measurements(kind: EvidenceKind, value: Any, name: str) -> tuple[Mapping[str, bytes], ...]:
    must, may = _REGISTERS[kind]
    entries: list[Mapping[str, bytes]] = []
    for index, item in enumerate(_filled(value, name)):
        at = f"{name}/{index}"
        registers = _object(item, at, must.keys() | may.keys())
        for register in must:
            if register not in registers:
                raise InvalidInput(f"{at}/{register}: missing; without it anything could run", field=f"{at}/{register}")
        entries.append(
            MappingProxyType({register: _hex(text, f"{at}/{register}", (must | may)[register]) for register, text in registers.items()})
        )
    return tuple(entries)


def _min_tcb(value: Any, name: str) -> Mapping[str, Mapping[str, int]]:
    products: dict[str, Mapping[str, int]] = {}
    if not isinstance(value, dict):
        raise InvalidInput(f"{name}: an object wanted", field=name)
    for product, item in value.items():
        at = f"{name}/{product[:20]}"
        if not _PRODUCT.match(product):
            raise InvalidInput(f"{at}: a product's name wanted, for instance Milan", field=at)
        parts = _object(item, at, set(_TCB_PARTS))
        for part in _TCB_PARTS[1:]:
            if part not in parts:
                raise InvalidInput(f"{at}/{part}: missing", field=f"{at}/{part}")
        products[product] = MappingProxyType({part: _integer(number, f"{at}/{part}", 0, 255) for part, number in parts.items()})
    return MappingProxyType(products)


def _object(value: Any, name: str, allowed: set[str] | set[EvidenceKind]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{name}: an object wanted", field=name)
    unknown = sorted(value.keys() - allowed)
    if unknown:
        raise InvalidInput(f"{name}/{unknown[0][:40]}: unknown member", field=f"{name}/{unknown[0][:40]}")
    return value


def _filled(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_ENTRIES:
        raise InvalidInput(f"{name}: a list of 1 to {MAX_ENTRIES} wanted", field=name)
    return value


def _texts(value: Any, name: str, fits: Callable[[str], bool]) -> list[str]:
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise InvalidInput(f"{name}: a list of at most {MAX_ENTRIES} wanted", field=name)
    for index, item in enumerate(value):
        if not isinstance(item, str) or not fits(item):
            raise InvalidInput(f"{name}/{index}: not a value that is known here", field=f"{name}/{index}")
    return value


def _digests(value: Any, name: str, size: int) -> list[bytes]:
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise InvalidInput(f"{name}: a list of at most {MAX_ENTRIES} wanted", field=name)
    return [_hex(item, f"{name}/{index}", size) for index, item in enumerate(value)]


def _hex(value: Any, name: str, size: int) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * size}}}", value):
        raise InvalidInput(f"{name}: {2 * size} lower-case hexadecimal digits wanted", field=name)
    return bytes.fromhex(value)


def _integer(value: Any, name: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidInput(f"{name}: an integer from {least} to {most} wanted", field=name)
    return value


def _boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{name}: true or false wanted", field=name)
    return value
