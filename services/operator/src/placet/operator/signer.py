"""The process that holds the BLS key. It has no network, no bus and no database: its only input is typed requests on its standard input.

It never signs bytes it is handed: a request names the fields of a Certificate or of RegisterKey, and the digest is computed here. Run as
`python -m placet.operator.signer KEYSTORE PASSWORD_FILE`; one JSON object a line in, one a line out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson

from placet.core import bls, keystore
from placet.core.digests import certificate_digest, key_id, register_key_digest
from placet.core.errors import PlacetError
from placet.core.types import Certificate, address_from, hash_from

MAX_REQUEST_BYTES = 4096


def answer(secret: bytes, request: dict[str, Any]) -> dict[str, str]:
    """Sign what a request describes. Kinds: certificate, possession, register, key."""
    kind = request["kind"]
    if kind == "key":
        return {"publicKey": bls.public_key(secret).hex()}
    if kind == "possession":
        return {"signature": bls.prove_possession(secret).hex()}
    if kind == "register":
        own_key = key_id(bls.encode_g1(bls.public_key(secret)))
        operator, bus_key = address_from(request["operator"]), hash_from(request["busKey"])
        digest = register_key_digest(operator, own_key, bus_key, int(request["chainId"]), address_from(request["registry"]))
        return {"signature": bls.sign(secret, digest).hex()}
    if kind == "certificate":
        certificate = Certificate(hash_from(request["root"]), int(request["count"]), int(request["epoch"]), int(request["timestamp"]))
        digest = certificate_digest(certificate, int(request["chainId"]), address_from(request["validator"]))
        return {"signature": bls.sign(secret, digest).hex()}
    return {"error": f"unknown kind {str(kind)[:40]!r}"}


def main() -> None:
    """Serve requests until standard input ends."""
    keystore_path, password_path = map(Path, sys.argv[1:3])
    try:
        secret = keystore.decrypt(keystore_path.read_bytes(), password_path.read_text().rstrip("\r\n"))
    except (OSError, PlacetError) as error:
        sys.stdout.write(orjson.dumps({"error": f"keystore: {error}"}).decode() + "\n")
        sys.stdout.flush()
        raise SystemExit(1) from None
    sys.stdout.write('{"ready":"true"}\n')
    sys.stdout.flush()
    for line in sys.stdin.buffer:
        if len(line) > MAX_REQUEST_BYTES:
            reply = {"error": "request too large"}
        else:
            try:
                reply = answer(secret, orjson.loads(line))
            except (PlacetError, ValueError, KeyError, TypeError, OverflowError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        sys.stdout.buffer.write(orjson.dumps(reply) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
