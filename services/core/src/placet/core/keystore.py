"""EIP-2335 keystores for BLS keys: scrypt or PBKDF2, AES-128-CTR, checksum. Files made here are readable by validator tooling and back.

Source: https://eips.ethereum.org/EIPS/eip-2335
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import unicodedata
import uuid
from pathlib import Path
from typing import Any

import orjson
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from placet.core import bls
from placet.core.errors import InvalidInput

_SCRYPT_N = 1 << 18
MAX_KEYSTORE_BYTES = 16 << 10
_MAX_SCRYPT_MEMORY = 512 << 20


def _password_bytes(password: str) -> bytes:
    """NFKD, control codes removed, UTF-8 (EIP-2335, password requirements)."""
    text = unicodedata.normalize("NFKD", password)
    return "".join(c for c in text if unicodedata.category(c) != "Cc").encode()


def _scrypt(password: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    if n * r * 128 > _MAX_SCRYPT_MEMORY or n & (n - 1) or not n > 1 or not 0 < r <= 32 or not 0 < p <= 16:
        raise InvalidInput("keystore: scrypt parameters are out of bounds", field="crypto.kdf")
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, dklen=32, maxmem=_MAX_SCRYPT_MEMORY + (64 << 20))


def _aes(key: bytes, iv: bytes, data: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def encrypt(secret: bytes, password: str, *, scrypt_n: int = _SCRYPT_N) -> bytes:
    """An EIP-2335 keystore (JSON) holding a BLS secret key. A smaller `scrypt_n` is for development only."""
    salt, iv = secrets.token_bytes(32), secrets.token_bytes(16)
    key = _scrypt(_password_bytes(password), salt, scrypt_n, 8, 1)
    message = _aes(key[:16], iv, secret)
    document = {
        "crypto": {
            "kdf": {"function": "scrypt", "params": {"dklen": 32, "n": scrypt_n, "p": 1, "r": 8, "salt": salt.hex()}, "message": ""},
            "checksum": {"function": "sha256", "params": {}, "message": hashlib.sha256(key[16:32] + message).hexdigest()},
            "cipher": {"function": "aes-128-ctr", "params": {"iv": iv.hex()}, "message": message.hex()},
        },
        "description": "Placet operator",
        "pubkey": bls.public_key(secret).hex(),
        "path": "",
        "uuid": str(uuid.uuid4()),
        "version": 4,
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)


def decrypt(keystore: bytes, password: str) -> bytes:
    """The BLS secret key (32 bytes) in an EIP-2335 keystore.

    Raises:
        InvalidInput: not a keystore, a wrong password, or the key is not that of its `pubkey`.
    """
    if len(keystore) > MAX_KEYSTORE_BYTES:
        raise InvalidInput(f"keystore: at most {MAX_KEYSTORE_BYTES} bytes", field="keystore")
    try:
        document: dict[str, Any] = orjson.loads(keystore)
        crypto = document["crypto"]
        kdf, params = crypto["kdf"]["function"], crypto["kdf"]["params"]
        salt = bytes.fromhex(params["salt"])
        if document["version"] != 4 or crypto["cipher"]["function"] != "aes-128-ctr" or crypto["checksum"]["function"] != "sha256":
            raise InvalidInput("keystore: version 4 with aes-128-ctr and sha256 wanted", field="keystore")
        if kdf == "scrypt":
            key = _scrypt(_password_bytes(password), salt, int(params["n"]), int(params["r"]), int(params["p"]))
        elif kdf == "pbkdf2" and params["prf"] == "hmac-sha256" and int(params["c"]) <= 1 << 22:
            key = PBKDF2HMAC(SHA256(), 32, salt, int(params["c"])).derive(_password_bytes(password))
        else:
            raise InvalidInput("keystore: scrypt, or pbkdf2 with hmac-sha256, wanted", field="crypto.kdf")
        message = bytes.fromhex(crypto["cipher"]["message"])
        checksum = bytes.fromhex(crypto["checksum"]["message"])
        iv = bytes.fromhex(crypto["cipher"]["params"]["iv"])
        public = str(document["pubkey"]).removeprefix("0x")
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"keystore: not an EIP-2335 document ({type(error).__name__})", field="keystore") from None
    if not hmac.compare_digest(hashlib.sha256(key[16:32] + message).digest(), checksum):
        raise InvalidInput("keystore: wrong password", field="password")
    secret = _aes(key[:16], iv, message)
    if bls.public_key(secret).hex() != public:
        raise InvalidInput("keystore: the key is not the one named by `pubkey`", field="keystore")
    return secret


def write_private(path: Path, content: bytes) -> None:
    """Write a file only its owner can read; never over an existing one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
