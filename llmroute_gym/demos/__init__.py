"""Demonstrations: decisions of routers, collected and kept, and what a clone can attain."""
