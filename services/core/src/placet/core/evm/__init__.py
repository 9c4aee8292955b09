"""The chain as services see it: JSON-RPC with failover (`rpc`), Placet's contracts (`contracts`), state pinned to a block (`reader`)."""
