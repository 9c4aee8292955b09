"""A name for this database: gateways that share it share one consumer group, those with another one do not."""

import uuid

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "gateway_0005"
down_revision = "gateway_0004"


def upgrade() -> None:
    identity = op.create_table("identity", sa.Column("id", sa.String(32), primary_key=True))
    op.bulk_insert(identity, [{"id": uuid.uuid4().hex}])


downgrade = no_downgrade
