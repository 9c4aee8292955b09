"""Proofs of model outputs, checked offline. Specified in docs/reference/zkml.md."""
