"""The production profile of the connection: SCRAM over TLS with a private CA, and the broker's access rules as typed errors."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from placet.core import topics
from placet.core.bus import BusError, BusUnavailable, NotPermitted, next_offsets
from placet.core.bus.kafka import KafkaBus
from placet.core.bus.kafka_client import KafkaSettings
from placet.core.bus.kafka_topics import apply_topics
from placet.sdk.devservices.kafka import KafkaBroker
from placet.sdk.devservices.process import free_ports

pytestmark = pytest.mark.kafka

TABLE = {topics.TASKS: replace(topics.TOPICS[topics.TASKS], partitions=2)}
_PEM = serialization.Encoding.PEM


def _certificate(
    name: str, issuer: x509.Certificate | None, issuer_key: ec.EllipticCurvePrivateKey | None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    )
    return builder.sign(issuer_key or key, hashes.SHA256()), key


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Bootstrap address of a SASL_SSL listener, and the CA's file. `service` may do everything, `stranger` nothing."""
    folder = tmp_path_factory.mktemp("secured")
    ca, ca_key = _certificate("ca", None, None)
    leaf, leaf_key = _certificate("broker", ca, ca_key)
    ca_file, store = folder / "ca.pem", folder / "broker.pem"
    ca_file.write_bytes(ca.public_bytes(_PEM))
    private = leaf_key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    store.write_bytes(private + leaf.public_bytes(_PEM) + ca.public_bytes(_PEM))
    plain, secure, controller = free_ports(3)
    properties = {
        "listeners": f"PLAINTEXT://127.0.0.1:{plain},SECURE://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},SECURE://127.0.0.1:{secure}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(store),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(ca_file),
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.secure.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:service;User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "false",
    }
    users = {"service": "correct-horse", "stranger": "battery-staple"}
    with KafkaBroker(folder / "data", port=plain, properties=properties, scram_users=users):
        yield f"127.0.0.1:{secure}", ca_file


def settings(secured: tuple[str, Path], user: str, password: str) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=secured[0],
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username=user,
        sasl_password=password,
        ca_file=str(secured[1]),
        connect_timeout_s=3.0,
        publish_timeout_s=5.0,
    )


async def test_a_service_with_its_password_and_the_ca_publishes_and_consumes(secured: tuple[str, Path]) -> None:
    own = settings(secured, "service", "correct-horse")
    await apply_topics(own, TABLE)
    async with KafkaBus(own, TABLE) as bus:
        sent = await bus.publish(topics.TASKS, b"k", b"v")
        subscription = await bus.subscribe([topics.TASKS], "operator")
        records = await subscription.batch()
        assert [record.id for record in records] == [sent]
        await subscription.commit(next_offsets(records))
        assert (await bus.read_to_end(topics.TASKS, sent.partition))[0].value == b"v"


async def test_a_wrong_password_or_another_ca_gets_no_connection(secured: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BusUnavailable, match="wrong password or certificate") as caught:
        await KafkaBus(settings(secured, "service", "guess"), TABLE).start()
    assert "guess" not in str(caught.value)
    other, _ = _certificate("other", None, None)
    (tmp_path / "ca.pem").write_bytes(other.public_bytes(_PEM))
    with pytest.raises(BusUnavailable):
        await KafkaBus(settings((secured[0], tmp_path / "ca.pem"), "service", "correct-horse"), TABLE).start()


async def test_what_the_access_rules_forbid_is_a_typed_error(secured: tuple[str, Path]) -> None:
    with pytest.raises(NotPermitted, match="may write no topic"):
        await KafkaBus(settings(secured, "stranger", "battery-staple"), TABLE).start()
    with pytest.raises(BusError):
        await apply_topics(settings(secured, "stranger", "battery-staple"), {"x": replace(TABLE[topics.TASKS], name="x")})
