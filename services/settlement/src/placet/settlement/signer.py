"""The interface before a sending key, and the one held in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from eth_account import Account

from placet.core.errors import InvalidInput
from placet.core.types import Address, Hash32, address_from


class TransactionSigner(Protocol):
    """Signs transactions of one account. A protocol, so that a KMS can stand behind it."""

    @property
    def address(self) -> Address:
        """The account."""

    def sign(self, transaction: dict[str, Any]) -> tuple[bytes, Hash32]:
        """Raw transaction and its hash, from EIP-1559 fields."""


class LocalTransactionSigner:
    """A key in a file."""

    def __init__(self, path: Path, field: str = "sender_key_file") -> None:
        try:
            self._account = Account.from_key(path.read_text().strip())
        except Exception as error:  # noqa: BLE001 - eth_account raises many kinds, some with the key in their text
            raise InvalidInput(f"{field}: {type(error).__name__}", field=field) from None
        self._address = address_from(self._account.address)

    @property
    def address(self) -> Address:
        return self._address

    def sign(self, transaction: dict[str, Any]) -> tuple[bytes, Hash32]:
        signed = self._account.sign_transaction(transaction)
        return bytes(signed.raw_transaction), Hash32(bytes(signed.hash))
