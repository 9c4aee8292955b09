"""Payments by x402: taken from gateways, verified again, executed once, and judged by what the chain shows."""
