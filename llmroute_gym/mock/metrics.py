"""What an engine publishes, in the names and the text format of vLLM's ``/metrics``."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping

LATENCIES = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5)
LONG = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
LATENESS = (0.0001, 0.0002, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.1, 1.0)
LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": LATENCIES,
    "vllm:inter_token_latency_seconds": BETWEEN,
    "vllm:e2e_request_latency_seconds": LONG,
    "vllm:request_queue_time_seconds": LONG,
    "vllm:request_prompt_tokens": LENGTHS,
    "vllm:request_generation_tokens": LENGTHS,
    "vllm:iteration_tokens_total": LENGTHS,
    "mock:step_lateness_seconds": LATENESS,
}
"""Name to the upper bounds of its buckets; the last one is how late steps end on the real clock."""
ENDINGS = ("stop", "length", "abort")


class Histogram:
    """How often which values occurred.

    Args:
        bounds: upper bounds of the buckets, rising.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Yields the lines of the text format."""
        below = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            below += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {below}'
        yield f"{name}_sum{{{labels}}} {self._sum:.9g}"
        yield f"{name}_count{{{labels}}} {below}"


class Metrics:
    """The counts and histograms of one engine.

    Attributes:
        histograms: by name.
        ended: how requests ended, to how many did.
        prompt_tokens: of all prompts that were prefilled.
        output_tokens: that came out.
        preemptions: of requests that have ended.
    """

    def __init__(self) -> None:
        self.histograms = {name: Histogram(bounds) for name, bounds in HISTOGRAMS.items()}
        self.ended = dict.fromkeys(ENDINGS, 0)
        self.prompt_tokens = self.output_tokens = self.preemptions = 0

    def text(self, labels: str, gauges: Mapping[str, float], counters: Mapping[str, float]) -> str:
        """Returns the text format.

        Args:
            labels: of every line, as ``name="value",name="value"``.
            gauges: further values that go up and down.
            counters: further values that only go up, without the suffix ``_total``.
        """
        counted = {
            "vllm:prompt_tokens": self.prompt_tokens,
            "vllm:generation_tokens": self.output_tokens,
            "vllm:num_preemptions": self.preemptions,
            **counters,
        }
        lines: list[str] = []
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name}{{{labels}}} {value:.9g}"]
        for name, value in counted.items():
            lines += [f"# TYPE {name}_total counter", f"{name}_total{{{labels}}} {value}"]
        lines.append("# TYPE vllm:request_success_total counter")
        for reason, count in self.ended.items():
            label = f'finished_reason="{reason}",{labels}'
            lines.append(f"vllm:request_success_total{{{label}}} {count}")
        for name, histogram in self.histograms.items():
            lines += [f"# TYPE {name} histogram", *histogram.lines(name, labels)]
        return "\n".join(lines) + "\n"
