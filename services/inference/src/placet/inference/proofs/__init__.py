"""Proofs that a published model gave the numbers of an answer. Specified in docs/reference/zkml.md."""
