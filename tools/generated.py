"""Files that are made from others: written by this script, held against their sources by `--check`.

- sdk/src/placet/sdk/artifacts: ABI and bytecode from contracts/artifacts, and the deployment plan
- services/core/…/contract_errors.json: the contracts' named errors
- docs/reference/topics.md, docs/reference/limits.md, docs/errors.md (table)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from placet.core import errors, limits, topics

ROOT = Path(__file__).resolve().parent.parent


def limits_page() -> str:
    """Every limit with its value and comment, from the source of `placet.core.limits`."""
    rows = []
    source = (ROOT / "services/core/src/placet/core/limits.py").read_text()
    for line in source.splitlines():
        if line[:1].isupper() and " = " in line:
            name, _, rest = line.partition(" = ")
            _, _, comment = rest.partition("  # ")
            rows.append(f"| `{name}` | {getattr(limits, name):,} | {comment} |")
    head = (
        "# Limits\n\nGenerated from `placet.core.limits` by `tools/generated.py`. All are enforced, before parsing where parsing can\n"
        "blow up.\n\n"
    )
    return head + "| limit | value | note |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"


def errors_table() -> str:
    """One row a code: status on each surface, whether a retry can help, what it means."""
    rows = []
    for kind in errors.ALL_ERRORS:
        text = " ".join((kind.__doc__ or "").split())
        rows.append(f"| `{kind.code}` | {kind.http_status} | {kind.grpc_status} | {'yes' if kind.retryable else 'no'} | {text} |")
    head = (
        "# Errors\n\nGenerated from `placet.core.errors` by `tools/generated.py`. REST answers are RFC 9457 problem documents whose\n"
        "`code` is the first column; `field` names the offending member when there is one.\n\n"
    )
    return head + "| code | REST | gRPC | retryable | meaning |\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"


def _type_of(item: dict[str, Any]) -> str:
    kind: str = item["type"]
    if kind.startswith("tuple"):
        return "(" + ",".join(_type_of(member) for member in item["components"]) + ")" + kind.removeprefix("tuple")
    return kind


def contract_errors() -> bytes:
    """Signatures of every error that Placet's contracts can revert with."""
    signatures: set[str] = set()
    for path in sorted((ROOT / "contracts/artifacts").glob("*.json")):
        for item in json.loads(path.read_text())["abi"]:
            if item["type"] == "error":
                signatures.add(f"{item['name']}({','.join(_type_of(member) for member in item['inputs'])})")
    return (json.dumps(sorted(signatures), indent=1) + "\n").encode()


def expected() -> dict[Path, bytes]:
    """Content of every generated file."""
    files = {
        ROOT / "docs/reference/topics.md": topics.to_markdown().encode(),
        ROOT / "docs/reference/limits.md": limits_page().encode(),
        ROOT / "docs/errors.md": errors_table().encode(),
        ROOT / "sdk/src/placet/sdk/artifacts/deploy-plan.json": (ROOT / "contracts/deploy-plan.json").read_bytes(),
    }
    files[ROOT / "services/core/src/placet/core/evm/contract_errors.json"] = contract_errors()
    for path in sorted((ROOT / "contracts/artifacts").glob("*.json")):
        files[ROOT / "sdk/src/placet/sdk/artifacts" / path.name] = path.read_bytes()
    return files


def main() -> None:
    wrong = [path for path, content in expected().items() if not path.exists() or path.read_bytes() != content]
    if "--check" in sys.argv[1:]:
        if wrong:
            raise SystemExit("out of date, run `python tools/generated.py`: " + ", ".join(str(p.relative_to(ROOT)) for p in wrong))
        return
    for path in wrong:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(expected()[path])
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
