"""Everything that is sent to a chain: jobs, account nonces, retries, reorgs. The only service that holds sending keys."""
