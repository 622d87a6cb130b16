"""Replicas, schedulers, batch times and engines."""
