"""Jobs, leases, account nonces and the attempts made at each."""

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "settlement_0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "lease",
        sa.Column("key", sa.LargeBinary(20), primary_key=True),
        sa.Column("chain_id", sa.BigInteger, primary_key=True),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_table(
        "job",
        sa.Column("reference", sa.LargeBinary(32), primary_key=True),
        sa.Column("chain_id", sa.BigInteger, nullable=False),
        sa.Column("target", sa.LargeBinary(20), nullable=False),
        sa.Column("calldata", sa.LargeBinary, nullable=False),
        sa.Column("value", sa.String(78), nullable=False),
        sa.Column("payer", sa.String(64), nullable=False, index=True),
        sa.Column("valid_until", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("announced", sa.String(16), nullable=False),
        sa.Column("error", sa.String(256), nullable=False),
        sa.Column("transaction_hash", sa.LargeBinary(32)),
        sa.Column("block_number", sa.BigInteger, nullable=False),
        sa.Column("gas_used", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False, index=True),
        sa.Column("trace", sa.Text, nullable=False),
    )
    op.create_table(
        "account_nonce",
        sa.Column("key", sa.LargeBinary(20), primary_key=True),
        sa.Column("chain_id", sa.BigInteger, primary_key=True),
        sa.Column("nonce", sa.BigInteger, primary_key=True),
        sa.Column("reference", sa.LargeBinary(32), nullable=False, index=True),
        sa.Column("final", sa.Boolean, nullable=False, index=True),
    )
    op.create_table(
        "attempt",
        sa.Column("key", sa.LargeBinary(20), primary_key=True),
        sa.Column("chain_id", sa.BigInteger, primary_key=True),
        sa.Column("nonce", sa.BigInteger, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("raw", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("max_fee", sa.String(78), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
    )


downgrade = no_downgrade
