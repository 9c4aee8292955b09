"""A run ends its predecessor's leftovers by recorded pid, and records itself."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import orjson

_FILE = "pid.json"


def _started_at(pid: int) -> str | None:
    """When a process started, as the kernel tells it: a pid alone may be somebody else's by now."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def record_self(folder: Path) -> None:
    """Write down this process."""
    (folder / _FILE).write_bytes(orjson.dumps({"pid": os.getpid(), "started": _started_at(os.getpid())}))


def end_predecessor(folder: Path, timeout_s: float = 10.0) -> bool:
    """End the run recorded in `folder`, if it still lives; says whether it did. Its own children end with it."""
    try:
        recorded = orjson.loads((folder / _FILE).read_bytes())
        pid, started = int(recorded["pid"]), recorded["started"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if pid == os.getpid() or started is None or _started_at(pid) != started:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + timeout_s
        while _started_at(pid) == started and time.monotonic() < end:
            time.sleep(0.05)
        if _started_at(pid) == started:
            os.kill(pid, signal.SIGKILL)
    return True
