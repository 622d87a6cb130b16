"""The routing rules."""
