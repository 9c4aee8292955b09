"""What every Placet service shares: domain types, digests, codecs, the bus, telemetry and settings.

The modules without I/O (`types`, `digests`, `merkle`, `consensus`, `agreement`, `evidence`, `calls`, `stake`) are pure functions over
frozen dataclasses; import-linter keeps them so. Nothing here knows a service.
"""
