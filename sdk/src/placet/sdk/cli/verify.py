"""`placet verify`: check an attestation offline, and say what was checked, what it trusts, and what was not checked."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import orjson

from placet.core.errors import InvalidInput
from placet.core.settings import load_deployment
from placet.sdk.cli.common import output_option, read_json, show
from placet.sdk.documents import attestation_of, intent_of, operator_set_of
from placet.verify import Report, verify_attestation

DEFAULT_QUORUM_BPS = 6667


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
@click.option(
    "--deployments", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="deployments/<chainId>.json"
)
@click.option(
    "--quorum-bps", type=click.IntRange(1, 10_000), default=DEFAULT_QUORUM_BPS, show_default=True, help="What the client demands."
)
@click.option("--max-age", type=click.IntRange(min=1), default=None, help="Oldest certificate taken, seconds.")
@click.option("--at", "now", type=int, default=None, help="Judge at this time (unix seconds) instead of now.")
@output_option
def verify(file: Path, deployments: Path, quorum_bps: int, max_age: int | None, now: int | None, output: str) -> None:
    """Check the attestation in FILE (the gateway's answer, or its `attestation` member) without asking anybody.

    Exits 1 when a check fails.
    """
    document = read_json(file, "attestation")
    body = document.get("attestation", document) if isinstance(document, dict) else document
    attestation = attestation_of(body)
    deployment = load_deployment(deployments, attestation.chain_id)
    intent = intent_of(document["intent"]) if isinstance(document, dict) and "intent" in document else None
    report: Report = verify_attestation(
        attestation,
        operators=_operator_set(deployments, attestation.certificate.epoch),
        validator=deployment.validator,
        chain_id=deployment.chain_id,
        quorum_bps=quorum_bps,
        now=int(time.time()) if now is None else now,
        max_certificate_age_s=max_age,
        intent=intent,
    )
    lines = [
        f"{'ok  ' if item.ok else 'FAIL'} {item.number:>2} {item.what}{': ' + item.detail if item.detail else ''}" for item in report.checks
    ]
    lines += ["", f"decision: {'allow' if attestation.leaf.allow else 'deny'}  task {body['leaf']['taskId']}"]
    lines += [f"trusts: {item}" for item in report.trusts]
    lines += [f"not checked: {item}" for item in report.not_checked]
    lines += ["", "verified" if report.ok else "NOT verified"]
    show(orjson.loads(orjson.dumps({**asdict(report), "allow": attestation.leaf.allow})), output, lines)
    if not report.ok:
        sys.exit(1)
