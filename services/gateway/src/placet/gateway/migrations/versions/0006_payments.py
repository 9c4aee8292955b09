"""Payments: each signed payment once, from its reservation to its end."""

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "gateway_0006"
down_revision = "gateway_0005"


def upgrade() -> None:
    op.create_table(
        "payment",
        sa.Column("id", sa.LargeBinary(32), primary_key=True),
        sa.Column("chain_id", sa.BigInteger, nullable=False),
        sa.Column("payer", sa.LargeBinary(20), nullable=False),
        sa.Column("asset", sa.LargeBinary(20), nullable=False),
        sa.Column("scheme", sa.String(16), nullable=False),
        # Amounts have up to 78 digits, more than a database's integers, and are added up here only for one payer.
        sa.Column("maximum", sa.String(78), nullable=False),
        sa.Column("charged", sa.String(78)),
        sa.Column("valid_before", sa.BigInteger, nullable=False),
        sa.Column("offer", sa.Text, nullable=False),
        sa.Column("authorization", sa.LargeBinary, nullable=False),
        sa.Column("identifier", sa.String(128)),
        sa.Column("request_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("surface", sa.String(32), nullable=False),
        sa.Column("tenant", sa.String(32)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("served_at", sa.BigInteger),
        sa.Column("tx_hash", sa.LargeBinary(32)),
        sa.Column("failure", sa.String(64)),
        sa.Column("answer", sa.LargeBinary),
        sa.Column("answer_status", sa.Integer),
        sa.Column("answer_type", sa.String(128)),
        sa.Column("answer_sha256", sa.LargeBinary(32)),
        sa.Column("receipt_id", sa.LargeBinary(32)),
        sa.Column("instance", sa.String(64), nullable=False),
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_payment_payer", "payment", ["payer", "state"])
    op.create_index("ix_payment_identifier", "payment", ["payer", "identifier"], unique=True)
    op.create_index("ix_payment_state", "payment", ["state", "updated_at"])
    op.create_index("ix_payment_valid_before", "payment", ["valid_before"])
    # One row a payer, for its lock: payments of one payer are reserved one after the other, whichever replica takes them.
    op.create_table(
        "payment_payer",
        sa.Column("payer", sa.LargeBinary(20), primary_key=True),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
    )


downgrade = no_downgrade
