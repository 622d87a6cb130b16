"""What a user relies on, laid out as the package is."""
