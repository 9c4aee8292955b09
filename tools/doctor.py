"""`make doctor`: run every tool that Placet needs (a `which` may find a shim that fails); name what is missing, with apt and brew lines.

Standard library only: it runs before anything is installed. `demo` needs Python, git, make and Node; `test` also a JDK, Maven and Go.
Exits 2 when something is missing.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tool:
    """A tool, how to run it, and what version is needed."""

    name: str
    command: list[str]
    pattern: str
    accept: Callable[[tuple[int, ...]], bool]
    wanted: str
    apt: str
    brew: str


PYTHON = Tool(
    "Python",
    [sys.executable, "-c", "import sys, venv, ensurepip; print('%d.%d.%d' % sys.version_info[:3])"],
    r"(\d+)\.(\d+)",
    lambda v: (3, 11) <= v[:2] <= (3, 12),
    "3.11 or 3.12, with venv",
    "apt-get install python3 python3-venv",
    "brew install python@3.12",
)
DEMO = [
    PYTHON,
    Tool("git", ["git", "--version"], r"(\d+)\.(\d+)", lambda v: v >= (2,), "2", "apt-get install git", "brew install git"),
    Tool(
        "GNU make",
        ["make", "--version"],
        r"GNU Make (\d+)\.(\d+)",
        lambda v: v >= (3, 81),
        "3.81",
        "apt-get install make",
        "brew install make",
    ),
    Tool(
        "Node.js",
        ["node", "--version"],
        r"v(\d+)\.(\d+)",
        lambda v: v >= (20,),
        "20",
        "apt-get install nodejs (20 or newer)",
        "brew install node",
    ),
    Tool("npm", ["npm", "--version"], r"(\d+)\.(\d+)", lambda v: v >= (9,), "9", "apt-get install npm", "brew install node"),
]
TEST = [
    *DEMO,
    Tool(
        "JDK",
        ["java", "-version"],
        r'version "(\d+)(?:\.(\d+))?',
        lambda v: v >= (17,),
        "17",
        "apt-get install openjdk-17-jdk-headless",
        "brew install openjdk",
    ),
    Tool(
        "Maven",
        ["mvn", "-version"],
        r"Apache Maven (\d+)\.(\d+)",
        lambda v: v >= (3, 6),
        "3.6",
        "apt-get install maven",
        "brew install maven",
    ),
    Tool(
        "Go",
        ["go", "version"],
        r"go(\d+)\.(\d+)",
        lambda v: v >= (1, 24),
        "1.24",
        "apt-get install golang (1.24 or newer)",
        "brew install go",
    ),
]


def problem_with(tool: Tool) -> str | None:
    """Why the tool cannot be used, or None. The tool is run, not looked for."""
    try:
        done = subprocess.run(tool.command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run ({type(error).__name__})"
    output = done.stdout + done.stderr
    if done.returncode != 0:
        return f"is there but fails (exit {done.returncode}): {output.strip().splitlines()[-1:] or ''}"
    match = re.search(tool.pattern, output)
    if match is None:
        return f"gives no version: {output.strip()[:80]!r}"
    version = tuple(int(part) for part in match.groups() if part is not None)
    return None if tool.accept(version) else f"has version {'.'.join(map(str, version))}"


def main() -> int:
    tools = {"demo": DEMO, "test": TEST}[sys.argv[1] if len(sys.argv) > 1 else "test"]
    missing = [(tool, why) for tool in tools if (why := problem_with(tool)) is not None]
    for tool, why in missing:
        sys.stderr.write(f"{tool.name} {why}; {tool.wanted} is needed\n    Debian, Ubuntu: {tool.apt}\n    macOS: {tool.brew}\n")
    if not missing:
        sys.stdout.write(f"{', '.join(tool.name for tool in tools)}: all there\n")
    return 2 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
