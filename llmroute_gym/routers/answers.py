"""What becomes of a router's answer that names no replica, or one that may not be chosen."""

import numpy as np

from llmroute_gym.errors import InputError, shown
from llmroute_gym.routers.base import Router
from llmroute_gym.sim.run import Run


def wrong_answer(run: Run, router: Router, choice: object) -> InputError:
    """Returns the error for what a router chose for the request at hand but may not choose."""
    return InputError(
        f"router {router!r} chose replica {shown(choice)} for request "
        f"{run.request}; it may choose {np.flatnonzero(run.mask()).tolist()}"
    )
