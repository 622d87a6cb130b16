"""A replica runs on, whatever its scheduler."""

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.events import push
from llmroute_gym.sim.compiled.jit import inlined
from llmroute_gym.sim.compiled.kernel import advance
from llmroute_gym.sim.compiled.vllm import advance_vllm, receive


@inlined
def run_on(
    replica: int,
    cluster: int,
    feed: int,
    until: float,
    observed: bool,
    stores: at.Stores,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Runs one replica through everything that happens before `until`, see `kernel.advance`."""
    if stores is None:
        advance(replica, cluster, feed, until, observed, ints, floats)
    elif ints[replica + at.SCHEDULER] == at.VLLM_V1:
        advance_vllm(replica, cluster, feed, until, observed, ints, floats)
    else:
        advance(replica, cluster, feed, until, observed, ints, floats)


@inlined
def arrive(replica: int, request: int, observed: bool, stores: at.Stores, ints: IntArray) -> None:
    """Puts a request at the end of a replica's waiting queue."""
    if stores is None:
        push(replica, request, observed, ints)
    elif ints[replica + at.SCHEDULER] == at.VLLM_V1:
        receive(replica, request, observed, ints)
    else:
        push(replica, request, observed, ints)
