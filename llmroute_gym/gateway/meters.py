"""Numbers for Prometheus: counters, gauges and histograms, and the text it reads."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable

Sample = tuple[tuple[str, ...], float]
"""Values of the labels, and the number."""


class Counter:
    """Counts events by labels.

    Args:
        name: of the metric.
        about: what it counts.
        labels: names of the labels.
    """

    def __init__(self, name: str, about: str, *labels: str) -> None:
        self.name, self.about, self.labels = name, about, labels
        self.counts: defaultdict[tuple[str, ...], int] = defaultdict(int)
        if not labels:
            self.counts[()] = 0

    def add(self, *values: str) -> None:
        """Counts one event, with a value for each label."""
        self.counts[values] += 1

    def lines(self) -> Iterable[str]:
        """Yields the lines of the text."""
        yield from _heading(self.name, self.about, "counter")
        for values, count in list(self.counts.items()):
            yield f"{self.name}{_labelled(self.labels, values)} {count}"


class Gauge:
    """A number that is asked for when it is read.

    Args:
        name: of the metric.
        about: what it is.
        read: returns its samples.
        labels: names of the labels.
    """

    def __init__(
        self, name: str, about: str, read: Callable[[], Iterable[Sample]], *labels: str
    ) -> None:
        self.name, self.about, self.labels = name, about, labels
        self._read = read

    def lines(self) -> Iterable[str]:
        """Yields the lines of the text."""
        yield from _heading(self.name, self.about, "gauge")
        for values, number in self._read():
            yield f"{self.name}{_labelled(self.labels, values)} {number:.10g}"


class Histogram:
    """Counts values by size.

    Args:
        name: of the metric.
        about: what is measured.
        bounds: upper ends of the buckets, rising.
    """

    def __init__(self, name: str, about: str, bounds: tuple[float, ...]) -> None:
        self.name, self.about, self.bounds = name, about, bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self) -> Iterable[str]:
        """Yields the lines of the text."""
        yield from _heading(self.name, self.about, "histogram")
        below = 0
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            below += count
            end = "+Inf" if bound is None else f"{bound:g}"
            yield f'{self.name}_bucket{{le="{end}"}} {below}'
        yield f"{self.name}_sum {self.total:.10g}"
        yield f"{self.name}_count {below}"


Meter = Counter | Gauge | Histogram


def exposition(meters: Iterable[Meter]) -> bytes:
    """Returns the text that Prometheus reads, format 0.0.4."""
    return "".join(f"{line}\n" for meter in meters for line in meter.lines()).encode("utf-8")


def _heading(name: str, about: str, kind: str) -> Iterable[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"


def _labelled(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    # Labels come from the settings and this package's own words, which need no escapes.
    pairs = ",".join(f'{name}="{value}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""
