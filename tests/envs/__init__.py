"""The environments and what they show."""
