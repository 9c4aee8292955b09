"""Where a receipt stands: its root, its place and the proof, recomputed from the leaves and held against the root."""

from __future__ import annotations

from dataclasses import dataclass

from placet.core.errors import Internal, NotFound
from placet.core.merkle import root_and_proofs
from placet.core.receipts import ledger_leaf
from placet.core.types import Address, Hash32
from placet.settlement.receipts.store import ReceiptStore


@dataclass(frozen=True, slots=True)
class Inclusion:
    """What `ReceiptLedger.verify` wants. `root_index` None: the root is not on the chain for good yet."""

    digest: Hash32
    chain_id: int
    ledger: Address
    poster: Address
    root: Hash32
    index: int
    count: int
    proof: list[Hash32]
    root_index: int | None
    object_name: str


def object_name(root: Hash32) -> str:
    """Where in the object store a root's leaves lie; `uriHash` of the ledger's event is keccak of it."""
    return f"receipt-roots/{root.hex()}.json"


async def inclusion_of(store: ReceiptStore, receipt_id: Hash32) -> Inclusion:
    """A receipt's inclusion. Raises NotFound: it is not known, or stands under no root yet."""
    found = await store.root_of(receipt_id)
    if found is None:
        raise NotFound("the receipt stands under no root (yet)", field="receiptId")
    root, leaves, position = found
    hashes = [ledger_leaf(root.chain_id, root.ledger, root.poster, leaf.digest) for leaf in leaves]
    computed, proofs = root_and_proofs(hashes)
    if computed != root.root:
        raise Internal("the leaves do not make the root")
    return Inclusion(
        digest=leaves[position].digest,
        chain_id=root.chain_id,
        ledger=root.ledger,
        poster=root.poster,
        root=root.root,
        index=position,
        count=root.count,
        proof=proofs[position],
        root_index=root.root_index,
        object_name=object_name(root.root),
    )
