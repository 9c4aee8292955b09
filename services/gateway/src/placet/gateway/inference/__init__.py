"""The gateway's half of inference: finding replicas, choosing one, and the public forms of a request."""
