"""Command: downloads a public trace (``python -m llmroute_gym.fetch NAME``)."""

import sys

from llmroute_gym.sim.fetch import main

if __name__ == "__main__":
    sys.exit(main())
