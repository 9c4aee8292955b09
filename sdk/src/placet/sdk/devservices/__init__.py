"""Real services on this machine for development, tests and the demo: a Kafka broker, Jaeger, PostgreSQL.

Each is pinned, installed once under `.tools/`, listens on 127.0.0.1 only, and ends with its owner, however that ends. Production runs
none of this.
"""
