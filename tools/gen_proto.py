"""Generate the protobuf code of proto/ into services/core/src/placet/core/gen; `--check` fails when it is not up to date."""

from __future__ import annotations

import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
TARGET = ROOT / "services" / "core" / "src" / "placet" / "core" / "gen"


def generate(target: Path) -> None:
    """Messages with type stubs, importable as `placet.core.gen.<name>_pb2`."""
    sources = sorted(path.relative_to(PROTO).as_posix() for path in (PROTO / "placet" / "v1").glob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")]
        code = protoc.main(["protoc", f"-I{PROTO}", *outputs, *sources])
        if code != 0:
            raise SystemExit(code)
        for path in sorted((Path(scratch) / "placet" / "v1").iterdir()):
            text = path.read_text().replace("from placet.v1 import", "from placet.core.gen import")
            if path.name.endswith("_pb2_grpc.py") and "Stub" not in text:
                continue  # no service in this file
            (target / path.name).write_text(text)
    (target / "__init__.py").write_text('"""Generated from proto/ by tools/gen_proto.py."""\n')


def main() -> None:
    if "--check" not in sys.argv[1:]:
        TARGET.mkdir(parents=True, exist_ok=True)
        generate(TARGET)
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        names = sorted(path.name for path in Path(scratch).iterdir())
        _, different, missing = filecmp.cmpfiles(scratch, TARGET, names, shallow=False)
        if different or missing:
            raise SystemExit(f"generated code is out of date: {different + missing}; run `make proto`")


if __name__ == "__main__":
    main()
