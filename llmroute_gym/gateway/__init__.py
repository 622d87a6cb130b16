"""A router in front of real engines: what it counts, decides and passes on."""
