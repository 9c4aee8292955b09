"""Collects signed observations and signatures into certificates. It can delay or refuse, never alter."""
