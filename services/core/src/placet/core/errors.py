"""The one error taxonomy of Placet: every failure that crosses a service or reaches a caller is one of these.

Each class has a stable `code`, says whether a retry can help, and names its status on each surface; docs/errors.md has one row per code
and a test walks the rows. A message tells the reader what to do and never holds a secret.
"""

from __future__ import annotations

from typing import Any, ClassVar


class PlacetError(Exception):
    """Base of the taxonomy.

    Attributes:
        code: stable machine-readable name.
        http_status: status on the REST surface (RFC 9457).
        retryable: whether the same request can succeed later.
        field: the offending field as a JSON pointer, when there is one.
        extra: further public members of the problem document.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, field: str | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.extra = extra

    def problem(self) -> dict[str, Any]:
        """RFC 9457 problem document."""
        document: dict[str, Any] = {
            "type": f"urn:placet:error:{self.code}",
            "title": self.code,
            "status": self.http_status,
            "detail": self.message,
            "code": self.code,
            "retryable": self.retryable,
        }
        if self.field is not None:
            document["field"] = self.field
        document.update(self.extra)
        return document


class InvalidInput(PlacetError):
    """The request is not well formed, or breaks a stated limit. Sending it again cannot help."""

    code = "invalid_input"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"


class TooLarge(InvalidInput):
    """A stated size, depth or count limit is exceeded."""

    code = "too_large"
    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class Unauthenticated(PlacetError):
    """No API key, or one that is not known."""

    code = "unauthenticated"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"


class Forbidden(PlacetError):
    """The key is known and may not do this."""

    code = "forbidden"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"


class PaymentRequired(PlacetError):
    """The model has a price, and nobody has paid it. Nothing was run."""

    code = "payment_required"
    http_status = 402
    grpc_status = "FAILED_PRECONDITION"


class PaymentMalformed(PlacetError):
    """What was sent as a payment cannot be read as one. `field` names the member; nothing was run, and nothing was taken."""

    code = "payment_malformed"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


class PaymentRefused(PlacetError):
    """The payment can be read and is not taken. The member `check` names the check that failed, the text what to do; nothing was run."""

    code = "payment_refused"
    http_status = 402
    grpc_status = "FAILED_PRECONDITION"

    @property
    def check(self) -> str:
        """Name of the check that failed (`placet.core.payment.verify.CHECKS`, and the ledger's)."""
        return str(self.extra.get("check", ""))


class PaymentConflict(PlacetError):
    """The payment, or its identifier, was used before with another request. It pays for that one only."""

    code = "payment_conflict"
    http_status = 409
    grpc_status = "ALREADY_EXISTS"


class PaymentPending(PlacetError):
    """The payment is taken, and its answer or its outcome is not there yet. Send the same payment again; a new one could pay twice."""

    code = "payment_pending"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


class NotFound(PlacetError):
    """No such thing, or it belongs to another tenant."""

    code = "not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"


class MethodNotAllowed(PlacetError):
    """The path is known, and not with this method."""

    code = "method_not_allowed"
    http_status = 405
    grpc_status = "UNIMPLEMENTED"


class IdempotencyConflict(PlacetError):
    """The Idempotency-Key was used before with another request."""

    code = "idempotency_conflict"
    http_status = 409
    grpc_status = "ALREADY_EXISTS"


class Conflict(PlacetError):
    """It stands already, or something else stands in its way; the text says what."""

    code = "conflict"
    http_status = 409
    grpc_status = "ABORTED"


class RateLimited(PlacetError):
    """The key's budget for this window is used up."""

    code = "rate_limited"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True


class PolicyNotAdmitted(PlacetError):
    """Operators with quorum stake have not admitted the policy (yet)."""

    code = "policy_not_admitted"
    http_status = 409
    grpc_status = "FAILED_PRECONDITION"
    retryable = True


class WrongPolicy(InvalidInput):
    """The client does not follow the policy that the request names, or follows none that is known."""

    code = "wrong_policy"


class ModeUnavailable(PlacetError):
    """Nobody here answers in the mode, or under the conditions, that were asked for. Nothing weaker is delivered in its place."""

    code = "mode_unavailable"
    http_status = 503
    grpc_status = "FAILED_PRECONDITION"


class TeeUnavailable(ModeUnavailable):
    """Mode tee was asked for, or evidence, and no replica here runs in a TEE."""

    code = "tee_unavailable"


class ProofFailed(PlacetError):
    """The answer stands, and could not be proven: the message says why. Ask again, or take it for what an unproven answer is worth."""

    code = "proof_failed"
    http_status = 500
    grpc_status = "ABORTED"


class AuditFailed(PlacetError):
    """Replicas that were to re-execute a request do not agree, so nothing is delivered; `nodes` says what each signed."""

    code = "audit_failed"
    http_status = 502
    grpc_status = "ABORTED"
    retryable = True


class NoQuorum(PlacetError):
    """Too little stake agreed on one answer before the deadline. Neither allowed nor denied."""

    code = "no_quorum"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


class DeadlineExceeded(PlacetError):
    """No result in time. Neither allowed nor denied; the task may still end."""

    code = "timeout"
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    retryable = True


class Unavailable(PlacetError):
    """Something this service needs (node, bus, database) does not answer."""

    code = "unavailable"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


class VerificationFailed(PlacetError):
    """A signature, proof or digest does not hold. Says which check failed."""

    code = "verification_failed"
    http_status = 422
    grpc_status = "FAILED_PRECONDITION"


class TeeRejected(VerificationFailed):
    """Evidence of a TEE does not hold, or is not what the policy accepts. The member `check` names the check that failed."""

    code = "tee_rejected"

    @property
    def check(self) -> str:
        """Name of the check that failed (`placet.verify.tee.CHECKS`)."""
        return str(self.extra.get("check", ""))


class TeeUnverifiable(PlacetError):
    """Evidence of a TEE can be neither accepted nor refused: collateral or a revocation list is missing, or out of date at that time.
    Fresh collateral can change that; until then the evidence counts as none."""

    code = "tee_unverifiable"
    http_status = 503
    grpc_status = "FAILED_PRECONDITION"
    retryable = True

    @property
    def check(self) -> str:
        """Name of the check that could not be made."""
        return str(self.extra.get("check", ""))


class SettlementFailed(PlacetError):
    """The chain would not take, or did not keep, the transaction."""

    code = "settlement_failed"
    http_status = 502
    grpc_status = "ABORTED"


class Internal(PlacetError):
    """A defect of ours. The text says nothing of the inside."""


ALL_ERRORS: tuple[type[PlacetError], ...] = (
    InvalidInput,
    TooLarge,
    Unauthenticated,
    Forbidden,
    PaymentRequired,
    PaymentMalformed,
    PaymentRefused,
    PaymentConflict,
    PaymentPending,
    NotFound,
    MethodNotAllowed,
    IdempotencyConflict,
    Conflict,
    RateLimited,
    PolicyNotAdmitted,
    WrongPolicy,
    ModeUnavailable,
    TeeUnavailable,
    ProofFailed,
    AuditFailed,
    NoQuorum,
    DeadlineExceeded,
    Unavailable,
    VerificationFailed,
    TeeRejected,
    TeeUnverifiable,
    SettlementFailed,
    Internal,
)
