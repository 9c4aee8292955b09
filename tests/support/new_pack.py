"""`placet policy` from `init` to a replayed recording, for any language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from placet.sdk.cli.policy import policy
from tests.contract.packs.conftest import Server


def run(*arguments: str | Path, code: int = 0) -> Any:
    result = CliRunner().invoke(policy, [*map(str, arguments), "--output", "json"])
    assert result.exit_code == code, result.output + repr(result.exception)
    return json.loads(result.output)


def new_pack_is_built_judges_and_replays(tmp_path: Path, server: Server, language: str) -> None:
    """A template as it comes builds, judges what the server says, and judges its recordings likewise."""
    folder = tmp_path / "my-feed"
    run("init", "my-feed", "--language", language, "--dir", tmp_path)
    (built,) = run("build", folder)["built"]
    assert (folder / "component.wasm.sha256").read_text().split()[0] == built["sha256"]
    params = tmp_path / "params.json"
    params.write_text(json.dumps({"url": server.url("/value.json"), "ceiling": 100}))
    live: list[str | Path] = [
        "simulate",
        folder,
        "--intent",
        folder / "intent.json",
        "--live",
        "--allow-host",
        server.host,
        "--params",
        params,
    ]

    server.says({"value": 100})
    (folder / "recordings").mkdir()
    allowed = run(*live, "--record", folder / "recordings" / "allowed.json", "--expect", "allow")
    assert allowed["policyData"][0]["agreed"] == '{"my_feed":{"value":100}}'
    server.says({"value": 101})
    denied = run(*live, "--record", folder / "recordings" / "denied.json", "--expect", "deny")
    assert [reason["message"] for reason in denied["reasons"]] == ["the value is 101, above the ceiling of 100"]
    assert denied["reasons"][0]["places"][0]["file"] == "my_feed.rego"
    server.says({"value": "many"})
    failed = run(*live, code=1)
    assert failed["decision"] == "abstain"
    assert "no integer" in failed["failure"]

    server.shutdown()
    server.server_close()
    counts = run("test", folder)["counts"]
    assert counts == {"pass": 6, "fail": 0, "error": 0, "skipped": 0}
