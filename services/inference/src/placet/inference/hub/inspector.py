"""Runs the checker on an upload: its files are fetched by digest into a folder, and the child gets that folder and nothing else."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from placet.core.errors import InvalidInput, TooLarge, Unavailable
from placet.core.models import File, Kind, Manifest, Spec
from placet.core.objects import ObjectStore
from placet.core.types import Hash32

_KINDS_WITH_FILES = frozenset({Kind.TENSORS, Kind.TEXT, Kind.EMBEDDING})


class Inspector:
    """Checks uploads, a few at a time."""

    def __init__(
        self,
        objects: ObjectStore,
        scratch: Path,
        *,
        max_model_bytes: int = 4 << 30,
        memory_bytes: int = 8 << 30,
        cpu_s: int = 120,
        at_once: int = 1,
    ) -> None:
        self._objects = objects
        self._scratch = scratch
        self._max_model_bytes = max_model_bytes
        self._memory_bytes = memory_bytes
        self._cpu_s = cpu_s
        self._places = asyncio.Semaphore(at_once)

    async def inspect(self, draft: Manifest, *, zkml: bool = False) -> Manifest:
        """The draft with what its files turned out to be: tensors, operators, sizes; with `zkml` the network that can be proven.

        Raises:
            InvalidInput: a rule is broken; names the file or part. TooLarge. NotFound: a file was not uploaded. Unavailable.
        """
        if draft.kind not in _KINDS_WITH_FILES:
            if draft.files:
                raise InvalidInput(f"files: a model of kind {draft.kind.value} has none", field="files")
            return draft
        total = sum(file.size for file in draft.files)
        if total > self._max_model_bytes:
            raise TooLarge(f"files: {total} bytes together, at most {self._max_model_bytes}", field="files")
        async with self._places:
            self._scratch.mkdir(parents=True, exist_ok=True)
            folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="check-", dir=self._scratch))
            try:
                await self.fetch(draft.files, folder)
                found = await self._ask(folder, draft.kind, zkml=zkml)
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return replace(
            draft,
            inputs=_specs(found["inputs"]),
            outputs=_specs(found["outputs"]),
            opsets=found["opsets"],
            ops=tuple(found["ops"]),
            parameters=found["parameters"],
            dynamic_quantisation=found["dynamicQuantisation"],
            context_length=found["contextLength"],
            dimensions=found["dimensions"],
            zk_network_sha256=Hash32(bytes.fromhex(found["zkNetworkSha256"])) if found["zkNetworkSha256"] else None,
        )

    async def fetch(self, files: Sequence[File], folder: Path) -> None:
        """Write files by digest into a folder. Raises NotFound, TooLarge, InvalidInput (a size that is not the blob's), Unavailable."""
        for file in files:
            path = folder / file.path
            await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
            size = await self._objects.fetch(file.sha256, path, max_bytes=file.size)
            if size != file.size:
                raise InvalidInput(f"files: {file.path} has {size} bytes, {file.size} are declared", field="files")

    async def _ask(self, folder: Path, kind: Kind, *, zkml: bool) -> dict[str, Any]:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "placet.inference.hub.checker",
            str(folder),
            kind.value,
            str(self._memory_bytes),
            str(self._cpu_s),
            *(["zkml"] if zkml else []),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"LANG": "C.UTF-8", "HOME": str(folder)},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(2 * self._cpu_s):
                answer, _ = await child.communicate()
        except TimeoutError:
            raise InvalidInput(f"the model was not checked within {2 * self._cpu_s} s", field="files") from None
        finally:
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        try:
            document = orjson.loads(answer)
        except ValueError:
            # Killed by a limit, or by the native code it was fed: the model's fault until shown otherwise.
            how = f"signal {-child.returncode}" if child.returncode and child.returncode < 0 else f"status {child.returncode}"
            raise InvalidInput(f"checking the model ended with {how}: it exceeds the limits or breaks the runtime", field="files") from None
        if "refused" in document:
            raise InvalidInput(str(document["refused"]), field=str(document["field"]))
        found = document.get("found")
        if not isinstance(found, dict):
            raise Unavailable("the checker answered in another form")
        return found


def _specs(values: Sequence[dict[str, Any]]) -> tuple[Spec, ...]:
    return tuple(Spec(value["name"], value["datatype"], tuple(value["shape"])) for value in values)
