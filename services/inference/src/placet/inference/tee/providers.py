"""Where quotes come from: Linux' configfs-tsm (Intel TDX, AMD SEV-SNP), and the development attester.

configfs-tsm is the kernel's one interface for both vendors (Documentation/ABI/testing/configfs-tsm): a directory is made, 64 bytes are
written into `inblob`, the quote is read from `outblob`, certificates that the host gave from `auxblob`; `generation` tells whether somebody
else wrote in between. AWS Nitro has another interface, which is not offered here.
"""

from __future__ import annotations

import contextlib
import secrets
import struct
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from placet.core.errors import TeeUnavailable, Unavailable
from placet.verify.tee import EvidenceKind
from placet.verify.tee import software as software_dev
from placet.verify.tee.intel import without_padding

TSM: Final = Path("/sys/kernel/config/tsm/report")
REPORT_DATA_BYTES: Final = 64
_MAX_BLOB_BYTES: Final = 32 << 10
_TRIES: Final = 3
_KINDS: Final = {"tdx_guest": EvidenceKind.TDX, "sev_guest": EvidenceKind.SEV_SNP}
_CERTIFICATES: Final = tuple(  # AMD SEV-SNP Guest-Hypervisor Communication Block, extended guest request: VCEK, ASK, ARK
    uuid.UUID(text).bytes
    for text in ("63da758d-e664-4564-adc5-f4b93be8accd", "4ab7b379-bbac-4fe4-a02f-05aef327c782", "c0b406a4-a803-4952-9743-3fb6014cd0ae")
)


@dataclass(frozen=True, slots=True)
class Quoted:
    """A quote as the TEE gave it. `certificates` are DER, leaf first, where it brought them."""

    kind: EvidenceKind
    document: bytes
    certificates: tuple[bytes, ...] = ()


class Provider(Protocol):
    """A TEE that can be asked for quotes. Blocking: call it in a thread."""

    def quote(self, report_data: bytes) -> Quoted:
        """A quote over 64 bytes. Raises Unavailable, TeeUnavailable."""


class Files(Protocol):
    """The file system, as far as configfs-tsm needs it."""

    def make(self, path: Path) -> None:
        """Make a directory; the kernel fills it."""

    def write(self, path: Path, data: bytes) -> None:
        """Write a file whole."""

    def read(self, path: Path) -> bytes:
        """Read a file whole."""

    def remove(self, path: Path) -> None:
        """Remove a directory; its files go with it."""


class OsFiles:
    """The real one."""

    def make(self, path: Path) -> None:
        """See Files."""
        path.mkdir()

    def write(self, path: Path, data: bytes) -> None:
        """See Files."""
        path.write_bytes(data)

    def read(self, path: Path) -> bytes:
        """See Files."""
        return path.read_bytes()

    def remove(self, path: Path) -> None:
        """See Files."""
        path.rmdir()


class TsmProvider:
    """configfs-tsm."""

    def __init__(self, files: Files | None = None, root: Path = TSM) -> None:
        self._files = files or OsFiles()
        self._root = root

    def quote(self, report_data: bytes) -> Quoted:
        """See Provider."""
        assert len(report_data) == REPORT_DATA_BYTES
        for _ in range(_TRIES):
            quoted = self._once(report_data)
            if quoted is not None:
                return quoted
        raise Unavailable("configfs-tsm: somebody else writes into the same report")

    def _once(self, report_data: bytes) -> Quoted | None:
        entry = self._root / f"placet-{secrets.token_hex(8)}"
        try:
            self._files.make(entry)
        except FileNotFoundError:
            raise TeeUnavailable(f"this machine has no TEE that Linux knows ({self._root} is not there)", field="mode") from None
        except OSError as error:
            raise Unavailable(f"configfs-tsm: {error.strerror}") from None
        try:
            before = self._number(entry / "generation")
            self._files.write(entry / "inblob", report_data)
            provider = self._files.read(entry / "provider").strip().decode("ascii", "replace")
            document = self._bounded(entry / "outblob")
            auxiliary = b""
            with contextlib.suppress(OSError):  # not every provider has one
                auxiliary = self._bounded(entry / "auxblob")
            if self._number(entry / "generation") != before + 1:
                return None
        except OSError as error:
            raise Unavailable(f"configfs-tsm: {error.strerror or error}") from None
        finally:
            with contextlib.suppress(OSError):
                self._files.remove(entry)
        kind = _KINDS.get(provider)
        if kind is None:
            raise TeeUnavailable(f"configfs-tsm: provider {provider!r} is not known here", field="mode")
        if kind is EvidenceKind.TDX:
            return Quoted(kind, without_padding(document))
        return Quoted(kind, document, certificates_of(auxiliary))

    def _number(self, path: Path) -> int:
        text = self._files.read(path).strip()
        if not text.isdigit():
            raise Unavailable("configfs-tsm: generation is no number")
        return int(text)

    def _bounded(self, path: Path) -> bytes:
        data = self._files.read(path)
        if len(data) > _MAX_BLOB_BYTES:
            raise Unavailable(f"configfs-tsm: {path.name} has {len(data)} bytes")
        return data


def certificates_of(table: bytes) -> tuple[bytes, ...]:
    """VCEK, ASK and ARK of AMD's certificate table (GUID, offset, length; little-endian; a GUID of zeros ends it), in DER. Empty when one
    of them is missing: the host has to be given them."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at + 24 <= len(table) and any(table[at : at + 16]):
        offset, length = struct.unpack_from("<II", table, at + 16)
        if offset + length <= len(table):
            found[table[at : at + 16]] = table[offset : offset + length]
        at += 24
    if not all(guid in found for guid in _CERTIFICATES):
        return ()
    return tuple(_der(found[guid]) for guid in _CERTIFICATES)


def _der(certificate: bytes) -> bytes:
    """The kernel passes on what the host had: DER or PEM."""
    if certificate.startswith(b"-----BEGIN"):
        return x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.DER)
    return certificate


class SoftwareProvider:
    """The development attester. Its evidence proves nothing and says so; production refuses it at both ends."""

    def __init__(self, key: Ed25519PrivateKey, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._clock = clock

    def quote(self, report_data: bytes) -> Quoted:
        """See Provider."""
        root = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        stated = software_dev.statement(root, report_data, int(self._clock()))
        document = software_dev.document(stated, self._key.sign(software_dev.signing_bytes(stated)))
        return Quoted(EvidenceKind.SOFTWARE_DEV, document)
