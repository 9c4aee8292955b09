"""Lock every distribution's dependencies with hashes: one file a service, one for the demo, one for development.

All files resolve under requirements/dev.txt's versions, so that a service never runs on versions the tests did not see.
The files name no host and no address. `python tools/lock.py` rewrites them; `--upgrade` lets versions move.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
SERVICES = ["gateway", "operator", "aggregator", "settlement", "inference"]
LIBRARIES = ["core", "verify", "sandbox"]
OWN = [f"placet-{name}" for name in [*SERVICES, *LIBRARIES, "sdk"]]
HATCHLING = REQUIREMENTS / "build.in"


def compile_lock(target: str, sources: list[Path], *, constraint: Path | None, extra: list[str], upgrade: bool) -> None:
    """Resolve `sources` for Python 3.11 and 3.12 on every platform into requirements/<target>.txt."""
    output = REQUIREMENTS / f"{target}.txt"
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--output-file", str(output)]
    for name in OWN:
        command += ["--no-emit-package", name]
    if constraint is not None:
        command += ["--constraint", str(constraint)]
    if upgrade:
        command.append("--upgrade")
    command += [*extra, *map(str, sources)]
    subprocess.run(command, cwd=ROOT, check=True)
    sys.stdout.write(f"{output.relative_to(ROOT)}\n")


def main() -> None:
    upgrade = "--upgrade" in sys.argv[1:]
    everything = [ROOT / "services" / name / "pyproject.toml" for name in [*LIBRARIES, *SERVICES]] + [ROOT / "sdk" / "pyproject.toml"]
    extras = ["--extra", "up", "--extra", "ai", "--extra", "tee", "--extra", "zk"]
    compile_lock("dev", [REQUIREMENTS / "dev.in", *everything], constraint=None, extra=extras, upgrade=upgrade)
    dev = REQUIREMENTS / "dev.txt"
    without_ai = [path for path in everything if path.parent.name != "inference"]
    compile_lock("demo", [HATCHLING, *without_ai], constraint=dev, extra=["--extra", "up"], upgrade=upgrade)
    compile_lock("demo-ai", [HATCHLING, *everything], constraint=dev, extra=["--extra", "up", "--extra", "ai"], upgrade=upgrade)
    for service in SERVICES:
        compile_lock(service, [HATCHLING, ROOT / "services" / service / "pyproject.toml"], constraint=dev, extra=[], upgrade=upgrade)


if __name__ == "__main__":
    main()
