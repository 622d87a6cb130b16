"""One decision of a run, taken by asking a router."""

import numpy as np

from llmroute_gym.errors import InputError, shown
from llmroute_gym.routers.base import Router
from llmroute_gym.sim.run import Run
from llmroute_gym.sim.submission import replica_index


def ask(run: Run, router: Router) -> None:
    """Places the request at hand where the router says.

    Raises:
        InputError: the router answers with no integer, or with a replica that its mask forbids.
    """
    mask = run.mask()
    choice = router.route(run.rows(), mask)
    replica = replica_index(choice, len(mask))
    if replica is None or not mask[replica]:
        raise wrong_answer(run, router, choice)
    run.place(replica)


def wrong_answer(run: Run, router: Router, choice: object) -> InputError:
    """Returns the error for what a router chose for the request at hand but may not choose."""
    return InputError(
        f"router {router!r} chose replica {shown(choice)} for request "
        f"{run.request}; it may choose {np.flatnonzero(run.mask()).tolist()}"
    )
