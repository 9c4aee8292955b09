"""Traces, logs and metrics: what every service emits, under which names.

`names` holds the vocabulary, `metrics` defines Prometheus metrics, `setup` turns traces and logs on. Importing this package loads no SDK.
"""
