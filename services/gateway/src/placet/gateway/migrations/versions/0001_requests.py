"""API keys, tasks and idempotency records."""

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "gateway_0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("secret_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("clients", sa.Text, nullable=False),
        sa.Column("requests_per_s", sa.Integer, nullable=False),
        sa.Column("cpu_ms_per_s", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("disabled_at", sa.BigInteger),
    )
    op.create_table(
        "task",
        sa.Column("task_id", sa.LargeBinary(32), primary_key=True),
        sa.Column("tenant", sa.String(32), nullable=False, index=True),
        sa.Column("batch_id", sa.LargeBinary(32), nullable=False, index=True),
        sa.Column("batch", sa.LargeBinary, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("request_key", sa.LargeBinary(32), nullable=False, index=True),
        sa.Column("request_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("settlement", sa.Text),
        sa.Column("evidence", sa.LargeBinary(32), index=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    )


downgrade = no_downgrade
