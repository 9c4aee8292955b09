"""Evidence of the TEE that this replica runs in. What it must hold and how it is verified: docs/reference/tee.md."""
