"""Lanes of jobs, each with its key; payments and refunds; receipts and the roots they stand under."""

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "settlement_0004"
down_revision = "settlement_0003"


def upgrade() -> None:
    op.add_column("job", sa.Column("lane", sa.String(16), nullable=False, server_default="attestations"))
    op.create_index("job_lane", "job", ["lane", "chain_id", "state"])
    op.create_table(
        "payment",
        sa.Column("payment_id", sa.LargeBinary(32), primary_key=True),
        sa.Column("reference", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("chain_id", sa.BigInteger, nullable=False),
        sa.Column("contract", sa.LargeBinary(20), nullable=False),
        sa.Column("asset", sa.LargeBinary(20), nullable=False),
        sa.Column("payer", sa.LargeBinary(20), nullable=False),
        sa.Column("pay_to", sa.LargeBinary(20), nullable=False),
        sa.Column("nonce", sa.LargeBinary(32), nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("charged", sa.String(78), nullable=False),
        sa.Column("signed_after", sa.BigInteger, nullable=False),
        sa.Column("valid_before", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("tx_hash", sa.LargeBinary(32)),
        sa.Column("log_index", sa.BigInteger),
        sa.Column("failure", sa.String(64), nullable=False),
        sa.Column("looks", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.UniqueConstraint("chain_id", "tx_hash", "log_index", name="payment_transfer"),
    )
    op.create_table(
        "refund",
        sa.Column("payment_id", sa.LargeBinary(32), primary_key=True),
        sa.Column("reference", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("chain_id", sa.BigInteger, nullable=False),
        sa.Column("vault", sa.LargeBinary(20), nullable=False),
        sa.Column("beneficiary", sa.LargeBinary(20), nullable=False),
        sa.Column("amount", sa.String(78), nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("failure", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "receipt_root",
        sa.Column("root", sa.LargeBinary(32), primary_key=True),
        sa.Column("reference", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("chain_id", sa.BigInteger, nullable=False),
        sa.Column("ledger", sa.LargeBinary(20), nullable=False),
        sa.Column("poster", sa.LargeBinary(20), nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("root_index", sa.BigInteger),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "receipt_leaf",
        sa.Column("receipt_id", sa.LargeBinary(32), primary_key=True),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("finished_at", sa.BigInteger, nullable=False),
        sa.Column("added_at", sa.Float, nullable=False),
        sa.Column("root", sa.LargeBinary(32), index=True),
        sa.Column("position", sa.BigInteger),
    )


downgrade = no_downgrade
