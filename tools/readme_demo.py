"""Put the output of `placet demo` (read from standard input) into README.md's worked example."""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
_BLOCK = re.compile(r"(## What the demo shows\n.*?\n```\n).*?(\n```\n)", re.DOTALL)


def main() -> None:
    output = sys.stdin.read().strip()
    if "as told" not in output:
        raise SystemExit("that is not the output of a demo that succeeded")
    text = README.read_text()
    if not _BLOCK.search(text):
        raise SystemExit("README.md has no block for the demo")
    README.write_text(_BLOCK.sub(lambda match: match[1] + output + match[2], text, count=1))


if __name__ == "__main__":
    main()
