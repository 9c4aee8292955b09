"""The gateway's half of payments: what was reserved, served, charged and settled."""
