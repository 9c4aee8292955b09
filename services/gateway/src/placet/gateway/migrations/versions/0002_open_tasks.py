"""Finding the tasks that are open must not read those that ended."""

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "gateway_0002"
down_revision = "gateway_0001"


def upgrade() -> None:
    still_open = sa.text("stage = 'submitted'")
    op.create_index("ix_task_open", "task", ["created_at"], postgresql_where=still_open, sqlite_where=still_open)


downgrade = no_downgrade
