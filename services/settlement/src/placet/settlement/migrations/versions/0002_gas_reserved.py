"""Gas that a job may still use: a payer's budget counts what is in flight, not only what was mined."""

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "settlement_0002"
down_revision = "settlement_0001"


def upgrade() -> None:
    op.add_column("job", sa.Column("gas_reserved", sa.BigInteger, nullable=False, server_default="0"))


downgrade = no_downgrade
