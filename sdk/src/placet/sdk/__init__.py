"""Placet's client library, the `placet` command, and the whole network on one machine (`placet.sdk.local`)."""
