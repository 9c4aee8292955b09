"""What a proof says, its document, and the checks of it. Specified in docs/reference/zkml.md."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import rfc8785

from placet.core import jsonx
from placet.core.ecdsa import recover
from placet.core.errors import InvalidInput, VerificationFailed
from placet.core.models import personal_digest
from placet.core.receipts import Mode, ModelRef, Receipt
from placet.core.types import Address, Hash32, address_from, hash_from, hex0x
from placet.verify.report import Check, Report
from placet.verify.zk.field import ORDER
from placet.verify.zk.groth16 import MAX_KEY_BYTES, PROOF_BYTES, Proof, VerifyingKey, check

SYSTEM: Final = "groth16-bn254"
MAX_DOCUMENT_BYTES: Final = 4 << 20
MAX_NUMBERS: Final = 4096
OPERATOR_DEV: Final = "operator-dev"
"""The replica made the keys for itself: it could forge. For development, and refused unless asked for by name."""
SETUPS: Final = ("publisher", "client", "ceremony")
"""By whom keys are made that others may accept: what counts is the address that signed."""
_INTEGER = re.compile(r"(?:0|-?[1-9][0-9]{0,18})\Z")


@dataclass(frozen=True, slots=True)
class Setup:
    """Who made the keys: `operator-dev`, or `signed` by `address` over the text, which names model, network and key."""

    by: str
    address: Address | None = None
    text: bytes = b""
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Statement:
    """This network, put to these inputs, gives these outputs. Numbers are integers: inputs at scale 2^fraction_bits, outputs at
    2^output_bits."""

    model: ModelRef
    network_sha256: Hash32
    vk_sha256: Hash32
    fraction_bits: int
    output_bits: int
    input_bound: int
    input_name: str
    output_name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    setup_by: str

    def encode(self) -> bytes:
        """Canonical JSON; integers as decimal strings where they may be large."""
        return rfc8785.dumps(
            {
                "v": 1,
                "system": SYSTEM,
                "model": {
                    "name": f"{self.model.publisher}/{self.model.name}",
                    "version": self.model.version,
                    "sha256": hex0x(self.model.sha256),
                },
                "networkSha256": hex0x(self.network_sha256),
                "vkSha256": hex0x(self.vk_sha256),
                "fractionBits": self.fraction_bits,
                "outputBits": self.output_bits,
                "inputBound": self.input_bound,
                "input": self.input_name,
                "output": self.output_name,
                "inputs": [str(value) for value in self.inputs],
                "outputs": [str(value) for value in self.outputs],
                "setupBy": self.setup_by,
            }
        )

    def digest(self) -> Hash32:
        """What the receipt names as its evidence."""
        return Hash32(hashlib.sha256(self.encode()).digest())

    def numbers(self) -> list[int]:
        """The public numbers of the proof."""
        return [value % ORDER for value in (*self.inputs, *self.outputs)]

    def values(self) -> list[float]:
        """The outputs as the numbers they stand for."""
        return [value / (1 << self.output_bits) for value in self.outputs]


@dataclass(frozen=True, slots=True)
class ProofDocument:
    """A proof with everything that is needed to check it."""

    statement: Statement
    vk: bytes
    proof: bytes
    setup: Setup

    def encode(self) -> bytes:
        """Canonical JSON."""
        setup: dict[str, Any] = {"by": self.setup.by}
        if self.setup.address is not None:
            setup |= {"address": hex0x(self.setup.address), "text": self.setup.text.decode(), "signature": hex0x(self.setup.signature)}
        return rfc8785.dumps(
            {
                "v": 1,
                "statement": jsonx.parse(self.statement.encode(), field="statement", max_bytes=MAX_DOCUMENT_BYTES),
                "vk": hex0x(self.vk),
                "proof": hex0x(self.proof),
                "setup": setup,
            }
        )


def decode_proof(raw: bytes) -> ProofDocument:
    """A proof's document. Raises InvalidInput, TooLarge."""
    return proof_of(jsonx.parse(raw, field="proof", max_bytes=MAX_DOCUMENT_BYTES, max_depth=6))


def proof_of(value: Any) -> ProofDocument:
    """A proof's document from JSON values. Raises InvalidInput."""
    _members(value, {"v", "statement", "vk", "proof", "setup"}, "proof")
    if value["v"] != 1:
        raise InvalidInput("proof: only version 1 is known", field="v")
    setup = value["setup"]
    if not isinstance(setup, dict) or setup.get("by") not in (OPERATOR_DEV, *SETUPS):
        raise InvalidInput(f"setup/by: one of {[OPERATOR_DEV, *SETUPS]} wanted", field="setup/by")
    made = Setup(setup["by"])
    if made.by == OPERATOR_DEV:
        _members(setup, {"by"}, "setup")
    else:
        _members(setup, {"by", "address", "text", "signature"}, "setup")
        made = Setup(
            made.by,
            address_from(setup["address"], field="setup/address"),
            _text(setup["text"], "setup/text", 4096).encode(),
            _bytes(setup["signature"], "setup/signature", 65),
        )
    return ProofDocument(
        statement_of(value["statement"]),
        _bytes(value["vk"], "vk", MAX_KEY_BYTES),
        _bytes(value["proof"], "proof", PROOF_BYTES),
        made,
    )


def statement_of(value: Any) -> Statement:
    """A statement from JSON values. Raises InvalidInput."""
    names = {"v", "system", "model", "networkSha256", "vkSha256", "fractionBits", "outputBits", "inputBound", "input", "output"}
    _members(value, names | {"inputs", "outputs", "setupBy"}, "statement")
    if value["v"] != 1 or value["system"] != SYSTEM:
        raise InvalidInput(f"statement: version 1 of {SYSTEM} wanted", field="statement/system")
    model = value["model"]
    _members(model, {"name", "version", "sha256"}, "statement/model")
    publisher, slash, name = _text(model["name"], "statement/model/name", 160).partition("/")
    if not slash:
        raise InvalidInput("statement/model/name: publisher/name wanted", field="statement/model/name")
    return Statement(
        model=ModelRef(
            publisher, name, _small(model["version"], "statement/model/version", 10**9), hash_from(model["sha256"], field="sha256")
        ),
        network_sha256=hash_from(value["networkSha256"], field="statement/networkSha256"),
        vk_sha256=hash_from(value["vkSha256"], field="statement/vkSha256"),
        fraction_bits=_small(value["fractionBits"], "statement/fractionBits", 32),
        output_bits=_small(value["outputBits"], "statement/outputBits", 64),
        input_bound=_small(value["inputBound"], "statement/inputBound", 1 << 20),
        input_name=_text(value["input"], "statement/input", 256),
        output_name=_text(value["output"], "statement/output", 256),
        inputs=_numbers(value["inputs"], "statement/inputs"),
        outputs=_numbers(value["outputs"], "statement/outputs"),
        setup_by=_text(value["setupBy"], "statement/setupBy", 64),
    )


def _members(value: Any, wanted: set[str], field: str) -> None:
    if not isinstance(value, dict) or set(value) != wanted:
        raise InvalidInput(f"{field}: an object of {sorted(wanted)} wanted", field=field)


def _text(value: Any, field: str, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise InvalidInput(f"{field}: text of at most {longest} characters wanted", field=field)
    return value


def _small(value: Any, field: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise InvalidInput(f"{field}: an integer from 0 to {most} wanted", field=field)
    return value


def _bytes(value: Any, field: str, longest: int) -> bytes:
    if not isinstance(value, str) or len(value) > 2 + 2 * longest or not re.fullmatch(r"0x(?:[0-9a-f]{2})*", value):
        raise InvalidInput(f"{field}: at most {longest} bytes in lower-case 0x hex wanted", field=field)
    return bytes.fromhex(value[2:])


def _numbers(value: Any, field: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_NUMBERS:
        raise InvalidInput(f"{field}: a list of 1 to {MAX_NUMBERS} wanted", field=field)
    if not all(isinstance(item, str) and _INTEGER.match(item) for item in value):
        raise InvalidInput(f"{field}: integers as decimal strings wanted", field=field)
    return tuple(int(item) for item in value)


# --- who made the keys


def setup_text(*, model_sha256: Hash32, network_sha256: Hash32, vk_sha256: Hash32, pk_sha256: Hash32, at: int) -> bytes:
    """What whoever ran the setup signs (EIP-191): these keys are for that network of that model, and what made them was thrown away."""
    return rfc8785.dumps(
        {
            "placet": "zk-setup/v1",
            "model": hex0x(model_sha256),
            "network": hex0x(network_sha256),
            "vk": hex0x(vk_sha256),
            "pk": hex0x(pk_sha256),
            "at": at,
        }
    )


def _signed_setup(document: ProofDocument) -> bool:
    statement, setup = document.statement, document.setup
    try:
        value = jsonx.parse(setup.text, field="setup/text", max_bytes=4096, max_depth=2)
    except InvalidInput:
        return False
    wanted = {
        "placet": "zk-setup/v1",
        "model": hex0x(statement.model.sha256),
        "network": hex0x(statement.network_sha256),
        "vk": hex0x(statement.vk_sha256),
    }
    return (
        isinstance(value, dict)
        and {name: value.get(name) for name in wanted} == wanted
        and recover(personal_digest(setup.text), setup.signature) == setup.address
    )


# --- the checks


@dataclass(frozen=True, slots=True)
class Accepted:
    """Whose setups are accepted: addresses by what the caller calls them; development ones only when asked for by name."""

    addresses: Mapping[Address, str]
    development: bool = False


def verify_proof(
    document: ProofDocument,
    *,
    accepted: Accepted,
    receipt: Receipt | None = None,
    model_sha256: Hash32 | None = None,
    network_sha256: Hash32 | None = None,
) -> Report:
    """Check a proof.

    1 the key is the statement's; 2 inputs are within the bound; 3 the proof holds for inputs and outputs; 4 who made the keys is accepted,
    and signed that they are this network's; 5 the receipt names this statement, in mode zkml, for this model;
    6 the model is the one wanted;
    7 the network is the one made from the model's file (`placet.inference.proofs.network` makes it).

    Raises:
        Unavailable: zksnake is not installed.
    """
    statement, setup = document.statement, document.setup
    checks: list[Check] = []
    left: list[str] = []

    def note(number: int, what: str, ok: bool, detail: str) -> None:
        checks.append(Check(number, what, ok, "" if ok else detail))

    note(1, "key", hashlib.sha256(document.vk).digest() == statement.vk_sha256, "the key is not the one the statement names")
    bound = statement.input_bound << statement.fraction_bits
    note(2, "inputs", all(-bound <= value <= bound for value in statement.inputs), "an input is beyond the bound, where nothing is proven")
    try:
        check(VerifyingKey.from_bytes(document.vk), statement.numbers(), Proof.from_bytes(document.proof))
        note(3, "proof", True, "")
    except VerificationFailed as error:
        note(3, "proof", False, error.message)
    if setup.by == OPERATOR_DEV:
        note(4, "setup", accepted.development and statement.setup_by == setup.by, "made by the node for itself, which could forge")
    else:
        ok = setup.address in accepted.addresses and statement.setup_by == setup.by and _signed_setup(document)
        note(4, "setup", ok, f"made by {hex0x(setup.address or b'')}, which is not accepted, or did not sign it for this network")
    if receipt is None:
        left.append("which answer it belongs to (give the receipt)")
    else:
        same = receipt.mode is Mode.ZKML and receipt.evidence_sha256 == statement.digest() and receipt.model == statement.model
        note(5, "receipt", same, "the receipt is for another statement")
    if model_sha256 is not None:
        note(6, "model", statement.model.sha256 == model_sha256, f"it is about 0x{statement.model.sha256.hex()}")
    if network_sha256 is None:
        left.append("that the network is the model's: whoever made the keys says so (give the model's file to compute it)")
    else:
        note(7, "network", statement.network_sha256 == network_sha256, "the model's file makes another network")
    who = "the node itself, in development" if setup.address is None else f"{accepted.addresses.get(setup.address, hex0x(setup.address))}"
    return Report(tuple(checks), (f"that {who} threw away what made the keys: it could forge otherwise",), tuple(left), "proof")
