"""Prepaid keys: what was paid for them, what is held and spent; receipts are found by payment."""

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "gateway_0007"
down_revision = "gateway_0006"


def upgrade() -> None:
    op.add_column("api_key", sa.Column("prepaid", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("receipt", sa.Column("payment_id", sa.String(80)))
    op.create_index("ix_receipt_payment", "receipt", ["payment_id"])
    op.create_table(
        "prepaid_key",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("payer", sa.LargeBinary(20), nullable=False),
        sa.Column("network", sa.String(64), nullable=False),
        sa.Column("asset", sa.LargeBinary(20), nullable=False),
        # Amounts have up to 78 digits. credited - spent - held is what may still be used.
        sa.Column("credited", sa.String(78), nullable=False),
        sa.Column("spent", sa.String(78), nullable=False),
        sa.Column("held", sa.String(78), nullable=False),
        sa.Column("spending_limit", sa.String(78)),
        sa.Column("period_s", sa.BigInteger),
        sa.Column("period_began", sa.BigInteger, nullable=False),
        sa.Column("period_used", sa.String(78), nullable=False),
        sa.Column("models", sa.Text, nullable=False),
        sa.Column("closed_at", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "prepaid_topup",
        sa.Column("payment_id", sa.LargeBinary(32), primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("amount", sa.String(78), nullable=False),
        # What the key will be, while it is not credited.
        sa.Column("wanted", sa.Text, nullable=False),
        sa.Column("credited_at", sa.BigInteger),
        sa.Column("refund", sa.String(78)),
        sa.Column("refunded_at", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_prepaid_topup_key", "prepaid_topup", ["key_id"])
    op.create_table(
        "prepaid_use",
        sa.Column("id", sa.LargeBinary(32), primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("pay_to", sa.LargeBinary(20), nullable=False),
        sa.Column("maximum", sa.String(78), nullable=False),
        sa.Column("charged", sa.String(78)),
        sa.Column("period_began", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
    )
    op.create_index("ix_prepaid_use_open", "prepaid_use", ["ended_at", "created_at"])


downgrade = no_downgrade
