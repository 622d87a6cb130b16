"""How a command runs: Hydra around a function of settings, its folder, the sum of a multirun."""
