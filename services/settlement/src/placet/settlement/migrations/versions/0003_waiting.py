"""Jobs that wait go behind the others: when one is looked at again, and how often it was put off."""

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "settlement_0003"
down_revision = "settlement_0002"


def upgrade() -> None:
    op.add_column("job", sa.Column("not_before", sa.Float, nullable=False, server_default="0"))
    op.add_column("job", sa.Column("put_off", sa.Integer, nullable=False, server_default="0"))


downgrade = no_downgrade
