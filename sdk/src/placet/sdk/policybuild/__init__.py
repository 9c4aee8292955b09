"""Making policy packs: building components, running their tests, simulating them, publishing them."""
