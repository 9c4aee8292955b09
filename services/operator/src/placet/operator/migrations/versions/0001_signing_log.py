"""The signing log, and what an operator remembers of its denials and admissions."""

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "operator_0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "sent_message",
        sa.Column("operator", sa.LargeBinary(20), primary_key=True),
        sa.Column("batch_id", sa.LargeBinary(32), primary_key=True),
        sa.Column("kind", sa.SmallInteger, primary_key=True),
        sa.Column("proposal_digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("batch_timestamp", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "signed_leaf",
        sa.Column("operator", sa.LargeBinary(20), primary_key=True),
        sa.Column("task_id", sa.LargeBinary(32), primary_key=True),
        sa.Column("leaf_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("expiration", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "denial",
        sa.Column("operator", sa.LargeBinary(20), primary_key=True),
        sa.Column("action", sa.LargeBinary(32), primary_key=True),
        sa.Column("task_id", sa.LargeBinary(32), nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "log_state",
        sa.Column("operator", sa.LargeBinary(20), primary_key=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("last_active", sa.BigInteger, nullable=False),
        sa.Column("not_before", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "evidence_index",
        sa.Column("operator", sa.LargeBinary(20), primary_key=True),
        sa.Column("evidence", sa.LargeBinary(32), primary_key=True),
        sa.Column("object_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False, index=True),
    )


downgrade = no_downgrade
