"""A decoder in a child process.

Native code that holds the interpreter's lock (reading a prompt, loading a model, a chat template that loops) then stops its own model and
nothing else; what hangs can be killed; what crashes takes only its process with it. The child gets no secrets: its environment is empty but
for what the accelerators' libraries are found by. Frames in both directions: 4 bytes of length, big-endian, and JSON.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import orjson

from placet.core.errors import InvalidInput, Unavailable
from placet.core.receipts import Finish
from placet.inference.engines.decoding import Job, Step

__all__ = ["MAX_FRAME_BYTES", "RemoteDecoder", "read_frame", "write_frame"]

MAX_FRAME_BYTES = 64 << 20
_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from placet.inference.engines.worker import main; main(sys.argv[2:])"
_ENVIRONMENT = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES")

Frame = Mapping[str, Any]


def write_frame(stream: IO[bytes], frame: Frame) -> None:
    """One frame, flushed."""
    raw = orjson.dumps(frame)
    stream.write(len(raw).to_bytes(4, "big") + raw)
    stream.flush()


def read_frame(stream: IO[bytes]) -> dict[str, Any] | None:
    """The next frame; None: the other side has gone."""
    header = stream.read(4)
    size = int.from_bytes(header, "big")
    if len(header) < 4 or size > MAX_FRAME_BYTES:
        return None
    body = stream.read(size)
    if len(body) < size:
        return None
    frame = orjson.loads(body)
    return frame if isinstance(frame, dict) else None


class RemoteDecoder:
    """`Decoder` whose work is done by `OgDecoder` in a child process, a question and an answer a step."""

    def __init__(
        self,
        folder: Path,
        *,
        providers: Sequence[str] | None,
        threads: int,
        max_batch: int,
        template: str | None,
        ready_within_s: float,
    ) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"LANG": "C.UTF-8", **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}},
        )
        self._jobs: dict[int, Job] = {}
        self._ids: dict[Job, int] = {}
        self._next = 0
        try:
            self._say(
                {
                    "folder": str(folder),
                    "providers": None if providers is None else list(providers),
                    "threads": threads,
                    "max_batch": max_batch,
                    "template": template,
                }
            )
            self._wait(ready_within_s)
            ready = self._answer()
            self.engine, self.provider = str(ready["engine"]), str(ready["provider"])
        except BaseException:
            self.close()
            raise

    def chat_text(self, messages: str) -> str:
        """As `Decoder.chat_text`."""
        return str(self._ask({"do": "chat", "messages": messages})["text"])

    def begin(self, jobs: Sequence[Job]) -> Iterator[Step]:
        """As `Decoder.begin`."""
        told = []
        for job in jobs:
            self._next += 1
            self._jobs[self._next], self._ids[job] = job, self._next
            sampling = {name: getattr(job.sampling, name) for name in job.sampling.__slots__}
            told.append({"id": self._next, "tokens": list(job.tokens), "sampling": sampling, "alone": job.alone})
        return self._steps(self._ask({"do": "begin", "jobs": told}))

    def step(self) -> Iterator[Step]:
        """As `Decoder.step`."""
        return self._steps(self._ask({"do": "step"}))

    def drop(self, job: Job) -> None:
        """As `Decoder.drop`."""
        number = self._ids.pop(job, None)
        if number is not None:
            del self._jobs[number]
            self._say({"do": "drop", "id": number})

    def close(self) -> None:
        """As `Decoder.close`: gently, for two seconds."""
        with suppress(OSError):
            self._stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(2)
        self.kill()
        self._child.wait()
        self._stdout.close()

    def kill(self) -> None:
        """As `Decoder.kill`."""
        self._child.kill()

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._child.stdin is not None
        return self._child.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._child.stdout is not None
        return self._child.stdout

    def _wait(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        if not select.select([self._stdout], [], [], max(ends - time.monotonic(), 0))[0]:
            raise Unavailable("the model did not load in time")

    def _ask(self, frame: Frame) -> dict[str, Any]:
        self._say(frame)
        return self._answer()

    def _say(self, frame: Frame) -> None:
        write_frame(self._stdin, frame)

    def _answer(self) -> dict[str, Any]:
        answer = read_frame(self._stdout)
        if answer is None:
            raise RuntimeError("the model's process died")
        if "broken" in answer:
            raise RuntimeError(f"the model's process broke: {answer['broken']}")
        if "refused" in answer:
            raise InvalidInput(answer["refused"]["message"], field=answer["refused"]["field"])
        return answer

    def _steps(self, answer: Mapping[str, Any]) -> Iterator[Step]:
        for step in answer["steps"]:
            job = self._jobs.get(step["id"])
            if job is not None:
                finish, error = step["finish"], step["error"]
                yield Step(
                    job,
                    step["token"],
                    None if finish is None else Finish(finish),
                    None if error is None else InvalidInput(error["message"], field=error["field"]),
                )
