"""The Model Hub: publishers, models, versions, aliases with their history, statements that were taken, usage."""

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "inference_0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "publisher",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("address", sa.LargeBinary(20), nullable=False, index=True),
        sa.Column("claimed_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "model",
        sa.Column("publisher", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("search", sa.Text, nullable=False),
        sa.Column("prices", sa.Text),
        sa.Column("previous_prices", sa.Text),
        sa.Column("priced_at", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "version",
        sa.Column("publisher", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("sha256", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("manifest", sa.LargeBinary, nullable=False),
        sa.Column("statement", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("published_at", sa.BigInteger, nullable=False),
        sa.Column("deprecated", sa.Text),
        sa.Column("deleted_at", sa.BigInteger),
    )
    op.create_table(
        "alias",
        sa.Column("publisher", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("alias", sa.String(32), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_table(
        "alias_move",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("publisher", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("alias", sa.String(32), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("previous", sa.Integer),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("statement", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_alias_move", "alias_move", ["publisher", "name", "alias", "id"])
    op.create_table(
        "statement",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "usage",
        sa.Column("publisher", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True),
        sa.Column("asset", sa.String(80), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("revenue", sa.String(80), nullable=False),
        sa.Column("computed_ms", sa.BigInteger, nullable=False),
    )


downgrade = no_downgrade
