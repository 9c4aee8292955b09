"""The Model Hub: who publishes what, which version an alias means, and what may be uploaded at all."""
