"""A training from its settings to a policy: setup, warm start, learning, resuming, tracking."""
