"""Migrations of settlement's database. They only expand."""
