"""Migrations of the operator's database. They only expand."""
