"""Shell completion: the script is the shell's, and what it asks for is answered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLACET = Path(sys.executable).parent / "placet"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str) -> None:
    done = subprocess.run([PLACET, "completion", shell], capture_output=True, text=True, check=True, timeout=60)
    assert "_PLACET_COMPLETE" in done.stdout


def test_commands_and_options_are_completed() -> None:
    def offered(words: str, at: int) -> str:
        environment = {**os.environ, "_PLACET_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        return subprocess.run([PLACET], env=environment, capture_output=True, text=True, check=True, timeout=60).stdout

    assert {"plain,policy", "plain,intent", "plain,models"} <= set(offered("placet ", 1).split())
    assert "plain,--recorded" in offered("placet policy simulate --rec", 3).split()
