"""Makes a profile of a gateway's log of requests: ``python -m llmroute_gym.calibrate LOG``."""

import sys

from llmroute_gym.compare.calibration.story import calibrate
from llmroute_gym.runs.command import run_command


def main() -> None:
    """Runs the command; a first word that sets nothing is the log."""
    first = sys.argv[1:2]
    if first and "=" not in first[0] and not first[0].startswith("-"):
        quoted = first[0].replace("\\", "\\\\").replace('"', '\\"')
        sys.argv[1] = f'log="{quoted}"'
    run_command("calibrate", calibrate)


if __name__ == "__main__":
    main()
