"""What observing a task means to the operator's loop: an interface, and how it fails."""

from __future__ import annotations

from typing import Protocol

from placet.core.batch import BatchContext
from placet.core.evm.reader import BlockState
from placet.core.messages import TaskObservation
from placet.operator.policies import LoadedPolicy


class ObservationFailed(Exception):
    """This operator could not observe a task: fetch, wall-clock deadline, missing artefact. An abstention, never a denial."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Observer(Protocol):
    """Runs a policy's PolicyData for one task."""

    async def observe(self, loaded: LoadedPolicy, context: BatchContext, index: int, state: BlockState, deadline: float) -> TaskObservation:
        """Canonical outputs and transcript digests. `deadline` in unix seconds. Raises ObservationFailed."""
