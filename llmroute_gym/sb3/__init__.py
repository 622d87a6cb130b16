"""The Stable-Baselines3 side: checkpoints, and trained policies as routers."""
