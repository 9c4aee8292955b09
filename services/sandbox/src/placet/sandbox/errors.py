"""How a sandboxed run fails. Which of the two classes it is decides what an operator may sign."""

from __future__ import annotations

from typing import Literal

FailureKind = Literal["error", "fuel", "memory", "stack", "panic", "size", "trap", "output", "compile"]
"""error: the engine or the component answered with an error. fuel, memory, stack: a limit was reached. panic, trap: the
code inside stopped itself. size: the request or the answer is larger than the limits table allows. output: the answer has
another form than promised. compile: the policy cannot be prepared."""


class SandboxError(Exception):
    """Anything this package raises about a run."""


class EvaluationFailed(SandboxError):
    """The run failed, and fails the same way on every machine: a function of the code, the request and the limits.

    For a policy this is a *deny* that operators sign.
    """

    def __init__(self, kind: FailureKind, message: str, *, fuel: int | None = None) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind: FailureKind = kind
        self.message = message
        self.fuel = fuel

    def __reduce__(self) -> tuple[object, ...]:
        return _restore_failure, (type(self), self.kind, self.message, self.fuel)


class PolicyRejected(EvaluationFailed):
    """The policy's modules or static data cannot be prepared: they do not parse, do not fit together or break a limit."""

    def __init__(self, message: str, *, kind: FailureKind = "compile", fuel: int | None = None) -> None:
        super().__init__(kind, message, fuel=fuel)


class SandboxUnavailable(SandboxError):
    """This machine could not run it: a killed worker, a wall-clock deadline, a failed fetch, a missing artefact.

    Says nothing about the policy, so an operator *abstains*: it signs no leaf.
    """


def _restore_failure(cls: type[EvaluationFailed], kind: FailureKind, message: str, fuel: int | None) -> EvaluationFailed:
    if issubclass(cls, PolicyRejected):
        return PolicyRejected(message, kind=kind, fuel=fuel)
    return EvaluationFailed(kind, message, fuel=fuel)
