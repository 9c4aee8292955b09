"""The signing log: one linearizable record of what this identity has sent and signed (architecture §4; threats 18, 20).

Everything is inserted and committed *before* a message leaves. A redelivery sends the stored bytes and never fetches or evaluates again.
Two different leaves for one task are refused here, whatever replica, restart or rebalance asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from placet.core import limits
from placet.core.db import insert_new
from placet.core.envelope import Kind
from placet.core.types import ZERO_HASH, Address, Hash32

_METADATA = sa.MetaData()
_SENT = sa.Table(
    "sent_message",
    _METADATA,
    sa.Column("operator", sa.LargeBinary(20), primary_key=True),
    sa.Column("batch_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("kind", sa.SmallInteger, primary_key=True),
    sa.Column("proposal_digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("envelope", sa.LargeBinary),
    sa.Column("batch_timestamp", sa.BigInteger),
)
_LEAF = sa.Table(
    "signed_leaf",
    _METADATA,
    sa.Column("operator", sa.LargeBinary(20), primary_key=True),
    sa.Column("task_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("leaf_hash", sa.LargeBinary(32)),
    sa.Column("expiration", sa.BigInteger),
)
_DENIAL = sa.Table(
    "denial",
    _METADATA,
    sa.Column("operator", sa.LargeBinary(20), primary_key=True),
    sa.Column("action", sa.LargeBinary(32), primary_key=True),
    sa.Column("task_id", sa.LargeBinary(32)),
    sa.Column("until", sa.BigInteger),
)
_STATE = sa.Table(
    "log_state",
    _METADATA,
    sa.Column("operator", sa.LargeBinary(20), primary_key=True),
    sa.Column("created_at", sa.BigInteger),
    sa.Column("last_active", sa.BigInteger),
    sa.Column("not_before", sa.BigInteger),
)

STALE_AFTER_S = 120
"""A log last written longer ago than this may be a restored copy: it is treated like an empty one."""


class LeafConflict(Exception):
    """This identity has already committed to another leaf for a task: signing this one would be equivocation."""

    def __init__(self, tasks: frozenset[Hash32]) -> None:
        super().__init__(f"another leaf was signed for {len(tasks)} of these tasks")
        self.tasks = tasks


@dataclass(frozen=True, slots=True)
class LeafEntry:
    """What is committed to before a leaf is signed. `denial` is the action key and the time until which it stands, for denials."""

    task_id: Hash32
    leaf_hash: Hash32
    expiration: int
    denial: tuple[Hash32, int] | None = None


class SigningLog:
    """The log of one operator identity. Replicas of the identity share the database."""

    def __init__(self, engine: AsyncEngine, operator: Address) -> None:
        self._engine = engine
        self._operator = operator
        self._not_before = 0

    @property
    def not_before(self) -> int:
        """Nothing with an earlier timestamp is signed, unix seconds."""
        return self._not_before

    async def open(self, now: int) -> None:
        """Open the log at `now` (unix seconds). An empty or old log refuses everything stamped before `now` + the skew bound."""
        async with self._engine.begin() as connection:
            row = (await connection.execute(sa.select(_STATE).where(_STATE.c.operator == self._operator))).first()
            guarded = now + 1 + limits.CLOCK_SKEW_FUTURE_S  # `now` is a whole second, and may just be ending
            if row is None:
                values = {"operator": self._operator, "created_at": now, "last_active": now, "not_before": guarded}
                await connection.execute(insert_new(_STATE, connection.dialect).values(**values))
                row = (await connection.execute(sa.select(_STATE).where(_STATE.c.operator == self._operator))).one()
                self._not_before = int(row.not_before)
                return
            self._not_before = max(int(row.not_before), guarded) if now - int(row.last_active) > STALE_AFTER_S else int(row.not_before)
            await self._touch(connection, now)

    async def _touch(self, connection: AsyncConnection, now: int) -> None:
        newest = sa.case((_STATE.c.last_active > now, _STATE.c.last_active), else_=now)
        # Only ever raised: a replica that was paused must not undo what another found out meanwhile.
        guard = sa.case((_STATE.c.not_before > self._not_before, _STATE.c.not_before), else_=self._not_before)
        update = sa.update(_STATE).where(_STATE.c.operator == self._operator)
        await connection.execute(update.values(last_active=newest, not_before=guard))

    async def heartbeat(self, now: int) -> None:
        """Note that the log is in use. Call it more often than STALE_AFTER_S.

        Takes over a later `not_before` of another replica, and one of its own when the log has been idle for long: this replica was
        paused, or the log is a restored copy.
        """
        async with self._engine.begin() as connection:
            row = (await connection.execute(sa.select(_STATE).where(_STATE.c.operator == self._operator))).first()
            guarded = now + 1 + limits.CLOCK_SKEW_FUTURE_S
            if row is None:
                values = {"operator": self._operator, "created_at": now, "last_active": now, "not_before": guarded}
                await connection.execute(insert_new(_STATE, connection.dialect).values(**values))
                self._not_before = guarded
            elif now - int(row.last_active) > STALE_AFTER_S:
                self._not_before = max(int(row.not_before), guarded)
            else:
                self._not_before = max(int(row.not_before), self._not_before)
            await self._touch(connection, now)

    async def sent(self, batch_id: Hash32, kind: Kind, proposal_digest: Hash32 = ZERO_HASH) -> bytes | None:
        """The envelope already committed for this batch, kind and Proposal; None when there is none."""
        query = sa.select(_SENT.c.envelope).where(
            _SENT.c.operator == self._operator,
            _SENT.c.batch_id == batch_id,
            _SENT.c.kind == int(kind),
            _SENT.c.proposal_digest == proposal_digest,
        )
        async with self._engine.connect() as connection:
            found: bytes | None = (await connection.execute(query)).scalar_one_or_none()
            return found

    async def commit_sent(
        self, batch_id: Hash32, kind: Kind, envelope: bytes, batch_timestamp: int, proposal_digest: Hash32 = ZERO_HASH
    ) -> bytes:
        """Commit an envelope before it leaves; returns the one that stands, which is an earlier one if another replica was first."""
        async with self._engine.begin() as connection:
            await connection.execute(
                insert_new(_SENT, connection.dialect).values(
                    operator=self._operator,
                    batch_id=batch_id,
                    kind=int(kind),
                    proposal_digest=proposal_digest,
                    envelope=envelope,
                    batch_timestamp=batch_timestamp,
                )
            )
        stands = await self.sent(batch_id, kind, proposal_digest)
        assert stands is not None
        return stands

    async def commit_leaves(self, entries: Sequence[LeafEntry]) -> None:
        """Commit to leaves, all or none, before any of them is signed. The same leaf again is fine.

        Raises:
            LeafConflict: naming the tasks for which another leaf stands.
        """
        async with self._engine.begin() as connection:
            rows = [
                {"operator": self._operator, "task_id": e.task_id, "leaf_hash": e.leaf_hash, "expiration": e.expiration}
                for e in sorted(entries, key=lambda e: e.task_id)
            ]
            await connection.execute(insert_new(_LEAF, connection.dialect), rows)
            query = sa.select(_LEAF.c.task_id, _LEAF.c.leaf_hash).where(
                _LEAF.c.operator == self._operator, _LEAF.c.task_id.in_([e.task_id for e in entries])
            )
            stand: Mapping[bytes, bytes] = {row.task_id: row.leaf_hash for row in (await connection.execute(query)).all()}
            conflicts = frozenset(e.task_id for e in entries if stand[e.task_id] != e.leaf_hash)
            if conflicts:
                raise LeafConflict(conflicts)
            for entry in entries:
                if entry.denial is not None:
                    action, until = entry.denial
                    await connection.execute(
                        insert_new(_DENIAL, connection.dialect).values(
                            operator=self._operator, action=action, task_id=entry.task_id, until=until
                        )
                    )
                    later = sa.update(_DENIAL).where(
                        _DENIAL.c.operator == self._operator, _DENIAL.c.action == action, _DENIAL.c.until < until
                    )
                    await connection.execute(later.values(until=until, task_id=entry.task_id))

    async def denied_until(self, actions: Sequence[Hash32]) -> dict[Hash32, tuple[int, Hash32]]:
        """For each action denied before: until when further attempts are abstained from (unix seconds), and the task that was denied."""
        if not actions:
            return {}
        query = sa.select(_DENIAL).where(_DENIAL.c.operator == self._operator, _DENIAL.c.action.in_(list(actions)))
        async with self._engine.connect() as connection:
            return {Hash32(row.action): (int(row.until), Hash32(row.task_id)) for row in (await connection.execute(query)).all()}

    async def prune(self, now: int) -> None:
        """Forget what can never be asked for again: messages of closed batches, leaves past the longest validity, denials that ended."""
        async with self._engine.begin() as connection:
            old = now - 10 * limits.BATCH_LIFETIME_S
            await connection.execute(sa.delete(_SENT).where(_SENT.c.operator == self._operator, _SENT.c.batch_timestamp < old))
            expired = now - limits.MAX_VALID_FOR_S
            await connection.execute(sa.delete(_LEAF).where(_LEAF.c.operator == self._operator, _LEAF.c.expiration < expired))
            await connection.execute(sa.delete(_DENIAL).where(_DENIAL.c.operator == self._operator, _DENIAL.c.until < now))
