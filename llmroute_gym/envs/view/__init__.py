"""Showing an episode: snapshots of it as pictures, as text, in a window."""
