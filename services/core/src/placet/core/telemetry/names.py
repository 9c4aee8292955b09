"""Names of spans, attributes and metrics: the vocabulary that dashboards, alerts and the trace tests rest on.

The messaging names follow the OpenTelemetry semantic conventions as of schema 1.44 (messaging is still "Development" there, and
Python's package keeps old and new names side by side, hence our own constants).
"""

from __future__ import annotations

from typing import Final

# Span names. A span on a topic is `{operation} {topic}`.
SEND: Final = "send"
PROCESS: Final = "process"


def send_span(topic: str) -> str:
    return f"{SEND} {topic}"


def process_span(topic: str) -> str:
    return f"{PROCESS} {topic}"


def request_span(method: str, route: str | None) -> str:
    """The gateway's SERVER span: by route, never by path."""
    return method if route is None else f"{method} {route}"


BATCH: Final = "batch"
"""Gateway: a TaskBatch is made and published."""
OBSERVE: Final = "observe"
EVALUATE: Final = "evaluate"
SIGN: Final = "sign"
"""Operator, a group each: leaves committed to the signing log, then the BLS signature."""
VERIFY: Final = "verify"
"""Aggregator: leaves and signatures of one Response."""
AGGREGATE: Final = "aggregate"
"""Aggregator: a certificate from the Responses it is linked to."""
SEND_TRANSACTION: Final = "eth_sendRawTransaction"
"""Settlement: CLIENT span around one broadcast."""


def settlement_span(status: str) -> str:
    """Settlement: an event about a job is published."""
    return f"settlement {status}"


# Messaging attributes.
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_DESTINATION_NAME: Final = "messaging.destination.name"
MESSAGING_DESTINATION_PARTITION_ID: Final = "messaging.destination.partition.id"
MESSAGING_CONSUMER_GROUP_NAME: Final = "messaging.consumer.group.name"
MESSAGING_CLIENT_ID: Final = "messaging.client.id"
MESSAGING_BATCH_MESSAGE_COUNT: Final = "messaging.batch.message_count"
MESSAGING_KAFKA_OFFSET: Final = "messaging.kafka.offset"
MESSAGING_KAFKA_MESSAGE_KEY: Final = "messaging.kafka.message.key"
MESSAGING_KAFKA_MESSAGE_TOMBSTONE: Final = "messaging.kafka.message.tombstone"
ERROR_TYPE: Final = "error.type"
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
RPC_SYSTEM: Final = "rpc.system"
RPC_METHOD: Final = "rpc.method"
SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE_ID: Final = "service.instance.id"

# Placet's own attributes. Ids are lower-case hex with 0x.
BATCH_ID: Final = "placet.batch.id"
BATCH_TASKS: Final = "placet.batch.tasks"
TASK_ID: Final = "placet.task.id"
POLICY_ID: Final = "placet.policy.id"
POLICY_CLIENT: Final = "placet.policy.client"
CHAIN_ID: Final = "placet.chain.id"
OPERATOR: Final = "placet.operator"
EPOCH: Final = "placet.epoch"
OUTCOME: Final = "placet.outcome"
TRANSACTION_HASH: Final = "placet.transaction.hash"
ACCOUNT_NONCE: Final = "placet.account.nonce"
ATTEMPT_KIND: Final = "placet.attempt.kind"

# Metrics (Prometheus). Units stand in the names.
BUS_SENT_RECORDS: Final = "placet_bus_sent_records_total"
BUS_SEND_SECONDS: Final = "placet_bus_send_seconds"
BUS_SEND_FAILURES: Final = "placet_bus_send_failures_total"
BUS_RECEIVED_RECORDS: Final = "placet_bus_received_records_total"
BUS_PROCESS_SECONDS: Final = "placet_bus_process_seconds"
BUS_DEAD_LETTERS: Final = "placet_bus_dead_letter_records_total"
BUS_REBALANCES: Final = "placet_bus_rebalances_total"
BUS_LAG_RECORDS: Final = "placet_bus_lag_records"
BUS_SUPPRESSED_LOG_LINES: Final = "placet_bus_suppressed_log_lines_total"
BUILD_INFO: Final = "placet_build_info"
