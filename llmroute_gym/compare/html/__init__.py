"""A suite as a page and as pictures; ``page.*`` are the parts that are no Python."""
