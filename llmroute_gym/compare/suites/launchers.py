"""Where the cells of a suite run: in this process, in several of this machine, or on many."""

import functools
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar

from llmroute_gym.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def check_launcher(launcher: str) -> None:
    """Checks that what a launcher needs is installed.

    Raises:
        InputError: it is not.
    """
    if launcher == "ray" and find_spec("ray") is None:
        raise InputError(
            "launcher=ray needs Ray, which is not installed; pip install 'llmroute-gym[ray]', or "
            "leave launcher out"
        )


def launched(
    launcher: str, workers: int, function: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[int, Result]]:
    """Calls a function on every item.

    Args:
        launcher: ``joblib`` (processes of this machine) or ``ray`` (a running cluster that
            ``RAY_ADDRESS`` names, or one of this machine).
        workers: processes at a time; 1 with ``joblib`` means this process.
        function: pure; it and its results can be pickled.
        items: its arguments.

    Yields:
        Index of the item and the result, as they are finished.

    Raises:
        InputError: as `check_launcher`; and whatever the function raises.
    """
    check_launcher(launcher)
    yield from _LAUNCHERS[launcher](workers, function, items)


def _numbered(function: Callable[[Item], Result], pair: tuple[int, Item]) -> tuple[int, Result]:
    return pair[0], function(pair[1])


def _by_joblib(
    workers: int, function: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[int, Result]]:
    if workers == 1:
        for index, item in enumerate(items):
            yield index, function(item)
        return
    from joblib import Parallel, delayed

    numbered = functools.partial(_numbered, function)
    calls = (delayed(numbered)(pair) for pair in enumerate(items))
    yield from Parallel(n_jobs=workers, return_as="generator_unordered")(calls)


def _by_ray(
    workers: int, function: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[int, Result]]:
    import ray

    begun = not ray.is_initialized()
    if begun:
        _connect(ray, workers)
    try:
        call = ray.remote(_numbered)
        waiting = list(enumerate(items))[::-1]
        going: list[Any] = []
        at_a_time = 2 * int(ray.cluster_resources().get("CPU", workers))
        while waiting or going:
            # Not all at once: results that nobody has taken yet fill the memory.
            while waiting and len(going) < at_a_time:
                going.append(call.remote(function, waiting.pop()))
            (done, *_), going = ray.wait(going)
            yield _result(ray, done)
    finally:
        if begun:
            ray.shutdown()


def _connect(ray: Any, workers: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        ray.init(num_cpus=workers, include_dashboard=False, **quiet)


def _result(ray: Any, done: Any) -> Any:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


_LAUNCHERS = {"joblib": _by_joblib, "ray": _by_ray}
