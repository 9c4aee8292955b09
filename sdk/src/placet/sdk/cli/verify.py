"""`placet verify`: check an attestation or a receipt offline, and say what was checked, what it trusts, and what was not checked."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import orjson

from placet.core.errors import InvalidInput
from placet.core.receipts import from_document, key_id_of
from placet.core.settings import load_deployment
from placet.core.types import Hash32, address_from, hex0x
from placet.sdk.cli.common import output_option, read_json, show
from placet.sdk.documents import attestation_of, intent_of, operator_set_of
from placet.verify import Expected, ReceiptKey, Report, verify_attestation, verify_receipt
from placet.verify.audit import verify_audit

DEFAULT_QUORUM_BPS = 6667
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _operator_set(deployments: Path, epoch: int) -> Any:
    """The operators of an epoch, as recorded in the deployments file."""
    document = read_json(deployments, "deployments")
    for item in document.get("epochs", []):
        if item.get("epoch") == epoch:
            return operator_set_of(item)
    raise InvalidInput(
        f"the deployments file holds no operator set of epoch {epoch}; record it with `placet operator status --record` at a node you trust"
    )


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--deployments", type=FILE, help="deployments/<chainId>.json: who the operators are (attestations).")
@click.option("--key", "keys", multiple=True, help="0x Ed25519 key that may sign receipts; may be repeated (receipts).")
@click.option("--request", "request_file", type=FILE, help="The request's JSON as it was sent (receipts).")
@click.option("--setup", "setups", multiple=True, help="Address whose keys for proofs are accepted; may be repeated (proofs).")
@click.option("--development-setup", is_flag=True, help="Accept keys that the node made for itself, which could forge (proofs).")
@click.option("--model-file", type=FILE, help="The model's .onnx: the proof's network is computed from it (proofs).")
@click.option("--receipt", "receipt_file", type=FILE, help="The receipt, or the answer that holds it (proofs).")
@click.option(
    "--quorum-bps", type=click.IntRange(1, 10_000), default=DEFAULT_QUORUM_BPS, show_default=True, help="What the client demands."
)
@click.option("--min-epoch", type=click.IntRange(min=0), default=None, help="OperatorRegistry.minEpoch() now: older epochs are revoked.")
@click.option("--max-age", type=click.IntRange(min=1), default=None, help="Oldest certificate taken, seconds.")
@click.option("--at", "now", type=int, default=None, help="Judge at this time (unix seconds) instead of now.")
@output_option
def verify(file: Path, output: str, **options: Any) -> None:
    """Check the attestation, the receipt or the proof in FILE (the gateway's answer, or its member) without asking anybody.

    Exits 1 when a check fails.
    """
    document = read_json(file, "attestation")
    if isinstance(document, dict) and (receipt := _receipt_in(document)) is not None:
        _verify_receipt(document, receipt, options["keys"], options["request_file"], output)
        return
    if isinstance(document, dict) and {"statement", "vk", "proof"} <= document.keys():
        _verify_proof(document, output, **options)
        return
    if options["deployments"] is None:
        raise InvalidInput("--deployments FILE is needed: it says who the operators are")
    _verify_attestation(document, output, **options)


def _receipt_in(document: dict[str, Any]) -> Any:
    """A receipt: the document itself, or the member of an answer."""
    placet = document.get("placet")
    if isinstance(placet, dict) and "receipt" in placet:
        return placet["receipt"]
    return document if "requestSha256" in document else None


def _verify_receipt(document: dict[str, Any], value: Any, keys: tuple[str, ...], request_file: Path | None, output: str) -> None:
    receipt = from_document(value)
    trusted = [ReceiptKey(_key(text)) for text in keys]
    if not trusted:
        raise InvalidInput("--key 0x… is needed: the node's receipt key, which NodeRegistry names")
    request = None if request_file is None else read_json(request_file, "request")
    answer = {name: member for name, member in document.items() if name != "placet"} if "placet" in document else None
    expected = Expected(request=request, model_name=request.get("model") if isinstance(request, dict) else None, response=answer)
    report = verify_receipt(receipt, keys={key_id_of(key.public_key): key for key in trusted}, expected=expected)
    others = document["placet"].get("audit", []) if isinstance(document.get("placet"), dict) else []
    if others:
        report = verify_audit(
            [receipt, *map(from_document, others)],
            keys={key_id_of(key.public_key): key for key in trusted},
            expected=expected,
            response=answer,
        )
    what = (
        f"{receipt.model.publisher}/{receipt.model.name}@{receipt.model.version}, mode {receipt.mode.value}, {receipt.execution.provider}"
    )
    used = f"{receipt.prompt_tokens} prompt tokens, {receipt.completion_tokens} completion tokens, {receipt.rows} rows"
    price = "unpaid" if receipt.price is None else f"{receipt.price.amount} of {hex0x(receipt.price.asset)} on {receipt.price.network}"
    _show(report, [f"receipt: {hex0x(receipt.id)}", f"answered by {what}", f"used {used}; {price}"], {"id": hex0x(receipt.id)}, output)


def _verify_proof(document: dict[str, Any], output: str, **options: Any) -> None:
    from placet.verify.zk.statement import Accepted, proof_of, verify_proof

    proof = proof_of(document)
    network = None
    if options["model_file"] is not None:
        try:
            from placet.inference.proofs.prover import read_network
        except ImportError:
            raise InvalidInput("--model-file needs the inference service's packages: pip install 'placet-sdk[ai]'") from None
        network = Hash32(read_network(options["model_file"]).digest())
    receipt = None
    if options["receipt_file"] is not None:
        answer = read_json(options["receipt_file"], "receipt")
        receipt = from_document(_receipt_in(answer) if isinstance(answer, dict) else answer)
    accepted = Accepted({address_from(text, field="setup"): text for text in options["setups"]}, options["development_setup"])
    report = verify_proof(proof, accepted=accepted, receipt=receipt, network_sha256=network)
    statement = proof.statement
    says = [
        f"proven: {statement.model.publisher}/{statement.model.name}@{statement.model.version}, {len(statement.inputs)} inputs",
        f"outputs: {', '.join(f'{value:.6g}' for value in statement.values()[:16])}",
    ]
    _show(report, says, {"outputs": statement.values()}, output)


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        key = b""
    if len(key) != 32:
        raise InvalidInput("--key: an Ed25519 public key (32 bytes, 0x hex) wanted")
    return key


def _verify_attestation(document: Any, output: str, **options: Any) -> None:
    deployments, now = options["deployments"], options["now"]
    body = document.get("attestation", document) if isinstance(document, dict) else document
    attestation = attestation_of(body)
    deployment = load_deployment(deployments, attestation.chain_id)
    intent = intent_of(document["intent"]) if isinstance(document, dict) and "intent" in document else None
    report: Report = verify_attestation(
        attestation,
        operators=_operator_set(deployments, attestation.certificate.epoch),
        validator=deployment.validator,
        chain_id=deployment.chain_id,
        quorum_bps=options["quorum_bps"],
        now=int(time.time()) if now is None else now,
        max_certificate_age_s=options["max_age"],
        min_epoch=options["min_epoch"],
        intent=intent,
    )
    decision = "allow" if attestation.leaf.allow else "deny"
    _show(report, [f"decision: {decision}  task {body['leaf']['taskId']}"], {"allow": attestation.leaf.allow}, output)


def _show(report: Report, says: list[str], members: dict[str, Any], output: str) -> None:
    """Every check, and exit 1 when one failed."""
    lines = [
        f"{'ok  ' if item.ok else 'FAIL'} {item.number:>2} {item.what}{': ' + item.detail if item.detail else ''}" for item in report.checks
    ]
    lines += ["", *says]
    lines += [f"trusts: {item}" for item in report.trusts]
    lines += [f"not checked: {item}" for item in report.not_checked]
    lines += ["", "verified" if report.ok else "NOT verified"]
    show(orjson.loads(orjson.dumps({**asdict(report), **members})), output, lines)
    if not report.ok:
        sys.exit(1)
