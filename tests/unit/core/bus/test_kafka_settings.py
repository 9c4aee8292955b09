"""How the Kafka bus is told where to go, and the rate limit on the client library's log."""

from __future__ import annotations

import logging
import ssl

import pytest

from placet.core.bus.kafka_client import KafkaSettings
from placet.core.bus.quiet import RateLimit, quiet


def test_the_password_is_never_printed() -> None:
    settings = KafkaSettings(bootstrap_servers="b:1", security_protocol="SASL_SSL", sasl_username="u", sasl_password="hunter2")
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bootstrap_servers": ""},
        {"bootstrap_servers": "b:1", "security_protocol": "SASL_SSL"},
        {"bootstrap_servers": "b:1", "cert_file": "c.pem"},
        {"bootstrap_servers": "b:1", "heartbeat_interval_ms": 20_000},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        KafkaSettings(**wrong)  # type: ignore[arg-type]


def test_tls_is_verified_and_modern() -> None:
    plain = KafkaSettings(bootstrap_servers="b:1")
    assert plain.ssl_context() is None
    assert "sasl_mechanism" not in plain.client_options(None)
    context = KafkaSettings(bootstrap_servers="b:1", security_protocol="SSL").ssl_context()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    scram = KafkaSettings(bootstrap_servers="b:1", security_protocol="SASL_SSL", sasl_username="u", sasl_password="p").client_options(None)
    assert (scram["sasl_mechanism"], scram["sasl_plain_username"]) == ("SCRAM-SHA-512", "u")


def test_of_equal_log_lines_one_in_ten_seconds_passes_and_tells_how_many_did_not() -> None:
    now = 0.0
    limit = RateLimit(10.0, lambda: now)

    def passes(template: str, *arguments: object) -> str | None:
        record = logging.LogRecord("aiokafka.x", logging.ERROR, "", 0, template, arguments, None)
        return record.getMessage() if limit.filter(record) else None

    assert passes("cannot connect to %s", "a") == "cannot connect to a"
    assert [passes("cannot connect to %s", "a") for _ in range(40)] == [None] * 40
    assert passes("something else") == "something else"
    now = 10.0
    assert passes("cannot connect to %s", "b") == "cannot connect to b (40 more like this were left out)"


def test_the_limit_is_put_on_every_logger_of_the_library_once() -> None:
    child = logging.getLogger("aiokafka.some.module")
    quiet("aiokafka")
    quiet("aiokafka")
    assert len([f for f in child.filters if isinstance(f, RateLimit)]) == 1
