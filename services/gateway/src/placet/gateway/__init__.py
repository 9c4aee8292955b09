"""Every public HTTP interface: early checks, task batches, waiting for attestations. It can delay or refuse, never alter."""
