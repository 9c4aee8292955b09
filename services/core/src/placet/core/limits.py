"""Every bound on input, in one place; docs/limits.md prints this table. Enforced before parsing wherever parsing can blow up."""

from __future__ import annotations

MAX_TASKS_PER_BATCH = 256
MAX_BATCH_BYTES = 512 << 10
MAX_INTENT_DATA_BYTES = 32 << 10
MAX_FUNCTION_SIGNATURE_BYTES = 512
MAX_ARGS_BYTES = 64 << 10
MAX_ARGS_DEPTH = 16
MAX_INTENT_SIGNATURE_BYTES = 4096  # EIP-1271 signatures of contract accounts
MAX_ATTACHMENTS = 8
MAX_ATTACHMENT_KIND_BYTES = 64
MAX_ATTACHMENT_URI_BYTES = 512
MAX_OPERATORS = 200
MAX_GROUPS = 16
MAX_POLICY_DATA = 8
MAX_BINDINGS = 64
MAX_GOVERNED_CALLS = 128
MAX_MODULES = 32
MAX_MODULE_BYTES = 256 << 10
MAX_PARAMS_BYTES = 256 << 10
MAX_SCHEMA_BYTES = 64 << 10
MAX_COMPONENT_BYTES = 32 << 20
MAX_MANIFEST_BYTES = 64 << 10
MAX_BUNDLE_BYTES = 64 << 20
MAX_OUTPUT_BYTES = 256 << 10  # one PolicyData output
MAX_OUTPUT_DEPTH = 32
MAX_OUTPUT_VALUES = 16_384  # values and keys in one output
MAX_INLINE_OBSERVATION_BYTES = 32 << 10  # beyond it results travel by content address
MAX_OBSERVATION_BLOB_BYTES = 4 << 20
MAX_PROPOSAL_BYTES = 512 << 10  # beyond it the observations are listed by digest
MAX_DECISION_BYTES = 16 << 10
MAX_DECISIONS_BYTES = 384 << 10  # of all tasks of a batch together; beyond its share a decision's value is shown by its digest
MAX_REASON_BYTES = 256
MAX_DECODED_NODES = 4096  # values in one decoded call
MAX_NESTED_CALLS = 64
MAX_NESTING = 3

CLOCK_SKEW_FUTURE_S = 2  # a batch from the future beyond this is refused
CLOCK_SKEW_PAST_S = 10  # a batch older than this when first seen is refused
BATCH_LIFETIME_S = 30  # nothing is signed later than this after the batch's timestamp
CERTIFY_WITHIN_S = 40  # no certificate is published later than this after the batch's timestamp, whatever was restarted
RESULT_WITHIN_S = 75  # a task without a result by then is failed by the gateway
DEFAULT_OBSERVE_FOR_MS = 5_000
MAX_OBSERVE_FOR_MS = 20_000
MIN_VALID_FOR_S = 1
MAX_VALID_FOR_S = 7 * 24 * 3600
MAX_RETRY_AFTER_S = 24 * 3600
MIN_REGO_FUEL = 1_000_000
MAX_REGO_FUEL = 20_000_000_000
MIN_REGO_MEMORY = 16 << 20
MAX_REGO_MEMORY = 256 << 20
