"""Traces, logs and metrics: what every service emits, under which names.

`names` holds the vocabulary, `metrics` defines Prometheus metrics, `setup` turns traces and logs on, `scope` says which service a task
belongs to where several share a process. Importing this package loads no SDK.
"""
