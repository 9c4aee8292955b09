"""Migrations of the gateway's database. They only expand."""
