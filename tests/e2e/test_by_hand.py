"""What docs/how-to/first-intent.md tells a reader to do, with the commands themselves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PLACET = Path(sys.executable).parent / "placet"
SPEND_LIMIT = Path(__file__).parents[2] / "policies" / "spend-limit"
FUNCTION = "withdraw(uint256,address,address)"
OTHER = "0x" + "5b" * 20


class ByHand:
    """A network brought up by `placet up` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / ".run" / "up"
        self.process: subprocess.Popen[str] | None = None

    def up(self) -> dict[str, Any]:
        self.process = subprocess.Popen([PLACET, "up"], cwd=self.folder, stdout=subprocess.PIPE, text=True)
        ends = time.monotonic() + 90
        ready = self.state / "ready.json"
        while time.monotonic() < ends:
            assert self.process.poll() is None, "it ended"
            if ready.exists() and ready.stat().st_size:
                found: dict[str, Any] = json.loads(ready.read_bytes())
                return found
            time.sleep(0.1)
        raise AssertionError("never ready")

    def stop(self, number: signal.Signals = signal.SIGINT) -> str:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.communicate(timeout=30)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def placet(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [PLACET, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[ByHand]:
    network = ByHand(tmp_path)
    try:
        yield network
    finally:
        if network.process is not None:
            network.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_intent_is_sent_looked_at_and_verified(by_hand: ByHand, number: signal.Signals) -> None:
    ready = by_hand.up()
    vault, me = ready["vault"], ready["account"]
    code, text = by_hand.placet("intent", "send", vault, FUNCTION, "1000", OTHER, me, "--from", me, "--save", "answer.json")
    assert (code, text.split()[0]) == (0, "allow"), text
    task = json.loads((by_hand.folder / "answer.json").read_bytes())["taskId"]
    code, text = by_hand.placet("intent", "status", task)
    assert (code, text.split()[0]) == (0, "certified"), text
    code, text = by_hand.placet("verify", "answer.json", "--deployments", ready["deployments"])
    assert (code, text.splitlines()[-1]) == (0, "verified"), text
    code, text = by_hand.placet("verify", str(by_hand.state / "ready.json"), "--deployments", ready["deployments"])
    assert (code, "not an attestation: member 'leaf' is missing" in text) == (1, True), text
    code, text = by_hand.placet("intent", "send", vault, FUNCTION, str(20_000 * 10**18), me, me, "--from", me)
    assert text.startswith("deny"), text
    assert "is above the limit" in text
    shutil.copytree(SPEND_LIMIT, by_hand.folder / "pack")
    manifest = (by_hand.folder / "pack" / "params.json").read_text()
    (by_hand.folder / "pack" / "params.json").write_text(json.dumps({**json.loads(manifest), "max_count": 7}))
    code, text = by_hand.placet("policy", "publish", "pack", "--output", "json")
    assert code == 0, text
    assert [operator["admitted"] for operator in json.loads(text)["admissions"]] == [True] * 4
    code, text = by_hand.placet("policy", "publish", "pack", "--rpc", ready["rpc"])
    assert (code, "give --object-store, --deployments" in text) == (1, True), text
    assert "stopping" in by_hand.stop(number)
    assert not (by_hand.state / "ready.json").exists(), "nobody takes it for a running network"
    code, text = by_hand.placet("intent", "status", task)
    assert code == 1
    assert "placet up" in text


def test_a_second_network_in_the_same_folder_says_that_the_first_is_stopped(by_hand: ByHand) -> None:
    by_hand.up()
    first = by_hand.process
    assert first is not None
    (by_hand.state / "ready.json").unlink()
    by_hand.up()
    assert first.wait(10) == 0
    assert "the network that was running in .run/up is stopped" in by_hand.stop()
