"""The child process of remote.py: reads a frame, does what it says, answers, until its input ends or its decoder breaks."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from placet.core.errors import InvalidInput, PlacetError
from placet.inference.engines.base import Sampling
from placet.inference.engines.decoding import Decoder, Job, Step
from placet.inference.engines.ogdecoder import OgDecoder
from placet.inference.engines.remote import Frame, read_frame, write_frame

_PR_SET_PDEATHSIG = 1


class _Worker:
    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._jobs: dict[int, Job] = {}
        self._ids: dict[Job, int] = {}

    def answer(self, frame: Mapping[str, Any]) -> Frame | None:
        """The answer; None: none is wanted."""
        match frame["do"]:
            case "chat":
                return {"text": self._decoder.chat_text(frame["messages"])}
            case "begin":
                jobs = [self._job(told) for told in frame["jobs"]]
                return self._told(self._decoder.begin(jobs))
            case "step":
                return self._told(self._decoder.step())
            case "drop":
                job = self._jobs.pop(frame["id"])
                del self._ids[job]
                self._decoder.drop(job)
                return None
            case _:
                raise ValueError("an unknown request")

    def _job(self, told: Mapping[str, Any]) -> Job:
        sampling = told["sampling"]
        guidance = sampling["guidance"]
        job = Job(
            told["tokens"],
            Sampling(**{**sampling, "stop": tuple(sampling["stop"]), "guidance": None if guidance is None else tuple(guidance)}),
            alone=told["alone"],
        )
        self._jobs[told["id"]], self._ids[job] = job, told["id"]
        return job

    def _told(self, steps: Iterable[Step]) -> Frame:
        return {
            "steps": [
                {
                    "id": self._ids[step.job],
                    "token": step.token,
                    "finish": None if step.finish is None else step.finish.value,
                    "error": None if step.error is None else _told_error(step.error),
                }
                for step in steps
            ]
        }


def _told_error(error: PlacetError) -> Frame:
    return {"message": error.message, "field": error.field}


def _die_with_parent(parent: int) -> None:
    """The end of the pipe ends the loop; this also ends a worker that is busy when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def main(arguments: list[str]) -> None:
    """Arguments: the parent's process id. The first frame says what to load."""
    _die_with_parent(int(arguments[0]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal is the parent's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but frames goes to the parent
    wanted = read_frame(requests)
    if wanted is None:
        return
    try:
        decoder = OgDecoder(Path(wanted.pop("folder")), **wanted)
        write_frame(answers, {"engine": decoder.engine, "provider": decoder.provider})
        worker = _Worker(decoder)
        while (frame := read_frame(requests)) is not None:
            try:
                answer = worker.answer(frame)
            except InvalidInput as refused:
                answer = {"refused": _told_error(refused)}
            if answer is not None:
                write_frame(answers, answer)
        decoder.close()
    except InvalidInput as refused:
        write_frame(answers, {"refused": _told_error(refused)})
    except Exception as error:  # noqa: BLE001 - native code raises anything; the parent builds another process
        sys.stderr.write(f"the decoder broke: {error}\n"[:2_000])
        write_frame(answers, {"broken": type(error).__name__})
