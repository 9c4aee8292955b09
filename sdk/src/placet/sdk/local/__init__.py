"""The whole network on one machine: an EVM node, the contracts, four operators, every service. For people, tests and benchmarks alike."""
