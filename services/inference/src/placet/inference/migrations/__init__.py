"""Migrations of the inference service's database. They only expand."""
