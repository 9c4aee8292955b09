"""How much may be spent: a payment, a day, in all. Kept in a file that several processes may share, and counted before anything is signed.

A signed payment can be executed by whoever was given it, whatever was answered: it counts in full, until a receipt that was verified says
that less was charged. A payment that was refused counts too: it could be executed as long as it is valid.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from placet.core.errors import InvalidInput, PlacetError, Unavailable
from placet.core.payment.prices import atomic
from placet.core.types import Hash32

SCALE_DECIMALS: Final = 18
"""Amounts are integers of 10^-18 whole units, whatever the asset's decimals."""
_KEPT_DAYS = 32
_LOCK_S = 10.0


class BudgetExceeded(PlacetError):
    """What a request may cost is more than may be spent. Nothing was signed. `limit` names which: payment, day or total."""

    code = "budget_exceeded"
    http_status = 402

    @property
    def limit(self) -> str:
        """Which limit."""
        return str(self.extra.get("limit", ""))


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent, as whole units in decimal text."""

    today: str
    total: str


class Budget:
    """Limits and what was spent of them. Amounts of limits are whole units in decimal text ("0.05"); None: no such limit.

    A day is one of UTC. Without a file what was spent is forgotten with the process.
    """

    def __init__(
        self,
        *,
        per_payment: str | None = "0.10",
        per_day: str | None = None,
        total: str | None = None,
        path: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limits = {name: _limit(text) for name, text in (("payment", per_payment), ("day", per_day), ("total", total))}
        self._clock = clock
        self._lock = threading.Lock()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._database = sqlite3.connect(path or ":memory:", timeout=_LOCK_S, isolation_level=None, check_same_thread=False)
            with self._writing() as database:
                database.execute("CREATE TABLE IF NOT EXISTS spent (period TEXT PRIMARY KEY, amount TEXT NOT NULL)")
                database.execute("CREATE TABLE IF NOT EXISTS payment (id TEXT PRIMARY KEY, day TEXT NOT NULL, amount TEXT NOT NULL)")
        except OSError as error:
            raise InvalidInput(f"budget: {path}: {error.strerror}", field="budget") from None

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that excludes every other, of this process and others."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database
                except BaseException:
                    self._database.execute("ROLLBACK")
                    raise
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                raise Unavailable(f"the budget's file cannot be used ({error}); nothing is paid without it") from None

    def check_one(self, amount: int) -> None:
        """Whether one payment may be so large. Raises BudgetExceeded."""
        limit = self.limits["payment"]
        if limit is not None and amount > limit:
            raise _exceeded("payment", amount, limit, 0)

    def reserve(self, payment_id: Hash32, amount: int) -> None:
        """Count a payment that is about to be signed. Raises BudgetExceeded, Unavailable."""
        self.check_one(amount)
        day = self._day()
        with self._writing() as database:
            for name, period in (("day", day), ("total", "total")):
                spent, limit = _get(database, period), self.limits[name]
                if limit is not None and spent + amount > limit:
                    raise _exceeded(name, amount, limit, spent)
            database.execute("INSERT INTO payment VALUES (?, ?, ?)", (payment_id.hex(), day, str(amount)))
            for period in (day, "total"):
                _add(database, period, amount)
            oldest = time.strftime("%Y-%m-%d", time.gmtime(self._clock() - _KEPT_DAYS * 86_400))
            database.execute("DELETE FROM payment WHERE day < ?", (oldest,))

    def charged(self, payment_id: Hash32, amount: int) -> None:
        """A payment turned out to cost so much, and no more. Counts once; what costs more than was counted changes nothing."""
        with self._writing() as database:
            row = database.execute("SELECT day, amount FROM payment WHERE id = ?", (payment_id.hex(),)).fetchone()
            if row is None:
                return
            day, counted = str(row[0]), int(row[1])
            database.execute("DELETE FROM payment WHERE id = ?", (payment_id.hex(),))
            if 0 <= amount < counted:
                for period in (day, "total"):
                    _add(database, period, amount - counted)

    def spent(self) -> Spent:
        """What was spent."""
        with self._writing() as database:
            return Spent(_text(_get(database, self._day())), _text(_get(database, "total")))

    def _day(self) -> str:
        return time.strftime("%Y-%m-%d", time.gmtime(self._clock()))


def _limit(text: str | None) -> int | None:
    return None if text is None else atomic(text, SCALE_DECIMALS)


def _get(database: sqlite3.Connection, period: str) -> int:
    row = database.execute("SELECT amount FROM spent WHERE period = ?", (period,)).fetchone()
    return 0 if row is None else int(row[0])


def _add(database: sqlite3.Connection, period: str, amount: int) -> None:
    value = str(_get(database, period) + amount)
    database.execute("INSERT INTO spent VALUES (?, ?) ON CONFLICT (period) DO UPDATE SET amount = excluded.amount", (period, value))


def _exceeded(name: str, amount: int, limit: int, spent: int) -> BudgetExceeded:
    left = f", of which {_text(spent)} are spent" if name != "payment" else ""
    what = {"payment": "a payment", "day": "a day", "total": "all payments"}[name]
    return BudgetExceeded(f"it may cost {_text(amount)}; {what} may cost {_text(limit)}{left}", limit=name)


def _text(amount: int) -> str:
    whole, part = divmod(amount, 10**SCALE_DECIMALS)
    return f"{whole}.{part:018d}".rstrip("0").rstrip(".")
