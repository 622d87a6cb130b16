"""Suites of scenarios: their cells, what was found, and what is published of it."""
