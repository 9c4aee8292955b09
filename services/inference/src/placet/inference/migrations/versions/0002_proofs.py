"""Proofs: who made keys for which model, and what is to be proven."""

import sqlalchemy as sa
from alembic import op

from placet.core.db import no_downgrade

revision = "inference_0002"
down_revision = "inference_0001"


def upgrade() -> None:
    op.create_table(
        "zk_setup",
        sa.Column("vk_sha256", sa.LargeBinary(32), primary_key=True),
        sa.Column("model_sha256", sa.LargeBinary(32), nullable=False, index=True),
        sa.Column("network_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("pk_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("made_by", sa.String(16), nullable=False),
        sa.Column("address", sa.LargeBinary(20)),
        sa.Column("text", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("registered_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "proof",
        sa.Column("id", sa.LargeBinary(32), primary_key=True),
        sa.Column("tenant", sa.String(32), nullable=False),
        sa.Column("model_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("vk_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("statement", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("claimed_until", sa.BigInteger, nullable=False),
        sa.Column("document_sha256", sa.LargeBinary(32)),
        sa.Column("error", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_proof_open", "proof", ["state", "created_at"])


downgrade = no_downgrade
