"""Receipts of inference, by tenant."""

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "gateway_0004"
down_revision = "gateway_0003"


def upgrade() -> None:
    op.create_table(
        "receipt",
        sa.Column("id", sa.LargeBinary(32), primary_key=True),
        sa.Column("tenant", sa.String(32), nullable=False),
        sa.Column("payer", sa.LargeBinary(20)),
        sa.Column("finished_at", sa.BigInteger, nullable=False, index=True),
        sa.Column("receipt", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_receipt_tenant", "receipt", ["tenant", "finished_at", "id"])


downgrade = no_downgrade
