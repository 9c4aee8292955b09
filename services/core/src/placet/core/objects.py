"""Content-addressed blobs: components, policy bundles, large observations, evidence. What is read is checked against its digest.

Through obstore: a local folder, S3, GCS or Azure, named by one URL (`file:///…`, `s3://bucket/prefix`, …), or memory for tests.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore, from_url

from placet.core.errors import NotFound, TooLarge, Unavailable, VerificationFailed
from placet.core.types import Hash32


def sha256(data: bytes) -> Hash32:
    """sha-256, 32 raw bytes."""
    return Hash32(hashlib.sha256(data).digest())


class ObjectStore:
    """Blobs by sha256 under `blobs/`, and named objects under their own names (evidence by its digest)."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._store: Any
        if parts.scheme == "memory":
            self._store = MemoryStore()
        elif parts.scheme == "file":
            path = Path(parts.path)
            path.mkdir(parents=True, exist_ok=True)
            self._store = LocalStore(prefix=str(path))
        else:
            self._store = from_url(url)

    async def put(self, data: bytes) -> Hash32:
        """Store a blob; returns its address."""
        digest = sha256(data)
        await self.put_named(_blob(digest), data)
        return digest

    async def get(self, digest: Hash32, *, max_bytes: int) -> bytes:
        """A blob by its address.

        Raises:
            NotFound: it is not there (yet).
            TooLarge: it is larger than `max_bytes`.
            VerificationFailed: the store returned other bytes.
            Unavailable: the store does not answer.
        """
        data = await self.get_named(_blob(digest), max_bytes=max_bytes)
        if sha256(data) != digest:
            raise VerificationFailed("the object store returned bytes with another digest", field="sha256")
        return data

    async def fetch(self, digest: Hash32, path: Path, *, max_bytes: int) -> int:
        """Stream a blob into a file, which is there in full and checked, or not at all. Returns its size.

        Raises: as `get`.
        """
        part = path.with_name(path.name + ".part")
        hasher, size = hashlib.sha256(), 0
        try:
            result = await obstore.get_async(self._store, _blob(digest))
            if result.meta["size"] > max_bytes:
                raise TooLarge(f"blob {digest.hex()}: {result.meta['size']} bytes, at most {max_bytes}", field="sha256")
            with part.open("wb") as file:
                async for chunk in result.stream(min_chunk_size=4 << 20):
                    hasher.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
            if hasher.digest() != digest:
                raise VerificationFailed("the object store returned bytes with another digest", field="sha256")
            part.rename(path)
            return size
        except FileNotFoundError:
            raise NotFound(f"no blob {digest.hex()}", field="sha256") from None
        except (BaseError, OSError) as error:
            raise Unavailable(f"object store: {type(error).__name__}") from None
        finally:
            part.unlink(missing_ok=True)

    async def store(self, chunks: AsyncIterator[bytes], digest: Hash32, *, max_bytes: int) -> int:
        """Stream a blob in under the digest it must have; nothing lies there when it has another. Returns its size.

        Raises:
            TooLarge: more than `max_bytes`. VerificationFailed: another digest. Unavailable.
        """
        size = 0
        hasher = hashlib.sha256()
        with tempfile.NamedTemporaryFile(prefix="placet-upload-") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise TooLarge(f"blob: more than {max_bytes} bytes", field="blob")
                hasher.update(chunk)
                file.write(chunk)
            file.flush()
            if hasher.digest() != digest:
                raise VerificationFailed(f"the upload's sha-256 is {hasher.hexdigest()}, not what it was announced as", field="sha256")
            try:
                await obstore.put_async(self._store, _blob(digest), Path(file.name))
            except (BaseError, OSError) as error:
                raise Unavailable(f"object store: {type(error).__name__}") from None
        return size

    async def size_of(self, digest: Hash32) -> int | None:
        """The size of a blob; None when it is not there. Raises Unavailable."""
        try:
            return int((await obstore.head_async(self._store, _blob(digest)))["size"])
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise Unavailable(f"object store: {type(error).__name__}") from None

    async def put_named(self, name: str, data: bytes) -> None:
        """Store under a name. Raises Unavailable."""
        try:
            await obstore.put_async(self._store, name, data)
        except (BaseError, OSError) as error:
            raise Unavailable(f"object store: {type(error).__name__}") from None

    async def delete(self, digest: Hash32) -> None:
        """Remove a blob, if it is there. Raises Unavailable."""
        await self.delete_named(_blob(digest))

    async def delete_named(self, name: str) -> None:
        """Remove what lies under a name, if anything does. Raises Unavailable."""
        try:
            await obstore.delete_async(self._store, name)
        except FileNotFoundError:
            pass  # another replica, or an operator with the same store, was first
        except (BaseError, OSError) as error:
            raise Unavailable(f"object store: {type(error).__name__}") from None

    async def get_named(self, name: str, *, max_bytes: int) -> bytes:
        """Read by name. Raises as `get`, but checks no digest."""
        try:
            result = await obstore.get_async(self._store, name)
            if result.meta["size"] > max_bytes:
                raise TooLarge(f"object {name}: {result.meta['size']} bytes, at most {max_bytes}", field="object")
            return bytes(await result.bytes_async())
        except FileNotFoundError:
            raise NotFound("no such object") from None
        except (BaseError, OSError) as error:
            raise Unavailable(f"object store: {type(error).__name__}") from None


def _blob(digest: Hash32) -> str:
    text = digest.hex()
    return f"blobs/{text[:2]}/{text}"
