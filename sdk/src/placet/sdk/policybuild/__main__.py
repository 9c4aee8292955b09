"""`make policies`: build every pack of this checkout into build/policies and hold what comes out against what is checked in.

    python -m placet.sdk.policybuild [PACK …]         ACCEPT=1 puts fresh components in the place of the checked-in ones

JavaScript and Python components have other bytes after every build, so they are compared by what they do: the fresh and the checked-in
component must answer every recording alike. Rust components must have the same bytes. The checked-in file is the component, whatever a
build says.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from placet.core.errors import PlacetError
from placet.sandbox.errors import SandboxError
from placet.sdk.devservices.process import DevServiceError, repository
from placet.sdk.packs import load_pack, pack_data
from placet.sdk.policybuild.build import BuiltData, build_pack, write_digest
from placet.sdk.policybuild.recording import read_recording
from placet.sdk.policybuild.simulate import Simulator
from placet.sdk.policybuild.testing import RECORDINGS, compare, replay, run_pack_tests, with_component


def check_pack(simulator: Simulator, folder: Path, out: Path, cache: Path, *, accept: bool) -> Iterator[tuple[bool, str]]:
    """Build and compare one pack; yields (good, line). With `accept` the pack gets the fresh components, and its recordings are made
    again from their own transcripts (their fuel is a function of the component's bytes)."""
    fresh = build_pack(folder, out, cache)
    for item in fresh:
        yield True, f"built {item.built.size:,} bytes in {item.built.seconds:.1f} s, admitted in {item.admit_seconds:.1f} s"
        if accept:
            shutil.copyfile(item.built.path, folder / item.data.component)
            write_digest(folder / item.data.component)
    if accept:
        for path in sorted((folder / RECORDINGS).glob("*.json")):
            recording = read_recording(path)
            simulation = replay(simulator, load_pack(folder, params=recording.params), recording)
            path.write_bytes(simulation.recording(recording.intent, recording.args, recording.params).to_json() + b"\n")
            yield True, f"recorded {path.name} again"
    for item in fresh:
        yield _digest_line(folder, item)
    results = run_pack_tests(simulator, folder)
    bad = [result for result in results if result.outcome in ("fail", "error")]
    for result in bad:
        yield False, f"{result.file}:{result.line}: {result.name}: {result.message}"
    yield not bad, f"{len(results) - len(bad)} of {len(results)} tests pass with the checked-in components"
    if fresh:
        yield from _same_answers(simulator, folder, fresh)


def _digest_line(folder: Path, item: BuiltData) -> tuple[bool, str]:
    component = folder / item.data.component
    digest = hashlib.sha256(component.read_bytes()).hexdigest()
    stated = component.with_name(component.name + ".sha256").read_text(encoding="ascii").split()[0]
    if stated != digest:
        return False, f"{component.name} is {digest}, but {component.name}.sha256 says {stated}"
    if item.built.sha256 == digest:
        return True, f"the same bytes as the checked-in {component.name}: {digest}"
    exact = item.data.source is not None and item.data.source.language == "rust"
    return not exact, f"OTHER BYTES: built {item.built.sha256}, checked in {digest}" + ("" if exact else " (as every build)")


def _same_answers(simulator: Simulator, folder: Path, fresh: list[BuiltData]) -> Iterator[tuple[bool, str]]:
    """The fresh components on the recorded inputs."""
    positions = {data.component: position for position, data in enumerate(pack_data(folder))}
    recordings = sorted((folder / RECORDINGS).glob("*.json"))
    if not recordings:
        yield False, f"there is nothing in {RECORDINGS}/ to compare components by: make one with `placet policy simulate --record`"
    for path in recordings:
        recording = read_recording(path)
        pack = load_pack(folder, params=recording.params)
        for item in fresh:
            pack = with_component(pack, positions[item.data.component], item.built.path.read_bytes())
        differences = compare(recording, replay(simulator, pack, recording))
        yield not differences, f"{path.name}: the fresh component " + (f"differs: {'; '.join(differences)}" if differences else "agrees")


def main(arguments: list[str]) -> int:
    """Exit status: 0 if everything is as it should be."""
    parser = argparse.ArgumentParser(prog="python -m placet.sdk.policybuild", description="Build and compare the packs of this checkout.")
    parser.add_argument("packs", nargs="*", help="names of folders under policies/; default: all")
    names = parser.parse_args(arguments).packs
    root = repository()
    folders = sorted(path.parent for path in (root / "policies").glob("*/policy.toml") if not names or path.parent.name in names)
    if not folders:
        sys.stderr.write("no such pack under policies/\n")
        return 2
    accept = os.environ.get("ACCEPT") == "1"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "placet"
    simulator = Simulator(cache)
    failed = False
    try:
        for folder in folders:
            sys.stdout.write(f"{folder.name}\n")
            try:
                for good, line in check_pack(simulator, folder, root / "build" / "policies" / folder.name, cache, accept=accept):
                    failed |= not good
                    sys.stdout.write(f"  {'' if good else 'FAILED '}{line}\n")
                    sys.stdout.flush()
            except (PlacetError, SandboxError, DevServiceError) as error:
                failed = True
                sys.stdout.write(f"  FAILED {error}\n")
    finally:
        simulator.close()
    sys.stdout.write("FAILED\n" if failed else "all packs are as checked in\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
