"""Receipts on chain: gathered into Merkle trees, whose roots are posted to a ReceiptLedger. Nobody's answer waits for any of it."""
