"""One task for each attempt of a request, whichever replica is asked."""

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "gateway_0003"
down_revision = "gateway_0002"


def upgrade() -> None:
    op.add_column("task", sa.Column("attempt", sa.Integer))
    # Rows of releases before this one have none, and in a unique index empty values differ.
    op.create_index("ix_task_attempt", "task", ["request_key", "attempt"], unique=True)


downgrade = no_downgrade
