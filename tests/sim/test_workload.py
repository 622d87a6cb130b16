"""Workloads hold what they were given, sorted and checked; sources draw from them."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.sim.arrivals import GammaArrivals, PoissonArrivals
from llmroute_gym.sim.content import Content
from llmroute_gym.sim.lengths import FixedLengths, LognormalLengths
from llmroute_gym.sim.sources import SyntheticWorkload, TraceWorkload, WorkloadSource
from llmroute_gym.sim.traces import load_trace
from llmroute_gym.sim.workload import Workload


def workload(n_requests: int = 100, seed: int = 0) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        np.cumsum(rng.exponential(size=n_requests)),
        rng.integers(1, 4000, n_requests),
        rng.integers(1, 900, n_requests),
    )


def test_arrays_are_sorted_stably_converted_and_frozen() -> None:
    unsorted = Workload(
        np.array([3, 1, 3, 0]),
        np.array([1.0, 2.0, 3.0, 4.0]),
        np.array([5, 6, 7, 8], dtype=np.int32),
        Content.of([[(i, i + 1)] for i in range(4)]),
        session=np.array([10, 11, 12, 13]),
    )
    assert unsorted.arrived_at_s.tolist() == [0.0, 1.0, 3.0, 3.0]
    assert unsorted.prompt_tokens.tolist() == [4, 2, 1, 3]
    assert unsorted.output_tokens.tolist() == [8, 6, 5, 7]
    assert unsorted.session is not None
    assert unsorted.session.tolist() == [13, 11, 10, 12]
    assert unsorted.content is not None
    assert unsorted.content.rows() == [[(3, 4)], [(1, 2)], [(0, 1)], [(2, 3)]]
    assert unsorted.prompt_tokens.dtype == unsorted.output_tokens.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        unsorted.arrived_at_s[0] = 1.0


def test_input_arrays_stay_the_callers() -> None:
    times, tokens = np.array([0.0, 1.0]), np.array([5, 6])
    made = Workload(times, tokens, tokens)
    times[1], tokens[1] = 9.0, 9
    assert made.arrived_at_s.tolist() == [0.0, 1.0]
    assert made.prompt_tokens.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("times", "prompts", "outputs", "expected"),
    [
        ([], [], [], "at least one request"),
        ([0.0, np.nan], [1, 1], [1, 1], r"arrived_at_s\[1\] must be finite and >= 0.* got nan"),
        ([0.0, np.inf], [1, 1], [1, 1], r"arrived_at_s\[1\]"),
        ([-1.0, 0.0], [1, 1], [1, 1], r"arrived_at_s\[0\] .* got -1"),
        ([0.0, 1.0], [1, 0], [1, 1], r"prompt_tokens\[1\] must be an integer from 1 .* got 0"),
        ([0.0, 1.0], [1, 1], [-3, 1], r"output_tokens\[0\] .* got -3"),
        ([0.0, 1.0], [1, 1.5], [1, 1], r"prompt_tokens\[1\] must be an integer .* got 1.5"),
        ([0.0, 1.0], [1, np.nan], [1, 1], r"prompt_tokens\[1\]"),
        ([0.0, 1.0], [1, 2**31], [1, 1], r"prompt_tokens\[1\] .* got 2147483648"),
        ([0.0, 1.0], [1], [1, 1], "prompt_tokens has 1 entries, but arrived_at_s has 2"),
        ([0.0, 1.0], ["a", "b"], [1, 1], "prompt_tokens must hold numbers"),
        ([0.0, 1.0], [True, True], [1, 1], "prompt_tokens must hold numbers"),
        ([[0.0], [1.0]], [1, 1], [1, 1], "must be one-dimensional"),
        ([[0.0], [1.0, 2.0]], [1, 1], [1, 1], "must be one-dimensional"),
    ],
)
def test_wrong_arrays_are_named(
    times: list[float], prompts: list[int], outputs: list[int], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        Workload(times, prompts, outputs)  # type: ignore[arg-type]


def test_qps_counts_gaps() -> None:
    tokens = np.ones(3, dtype=int)
    assert Workload(np.array([5.0, 6.0, 9.0]), tokens, tokens).qps == 0.5
    assert Workload(np.zeros(3), tokens, tokens).qps == np.inf
    assert np.isnan(Workload(np.zeros(1), tokens[:1], tokens[:1]).qps)


def test_with_qps_stretches_time_only() -> None:
    original = workload()
    faster = original.with_qps(7.0)
    assert faster.qps == pytest.approx(7.0, rel=1e-12)
    ratio = faster.arrived_at_s / original.arrived_at_s
    assert np.ptp(ratio) < 1e-12
    assert (faster.prompt_tokens == original.prompt_tokens).all()


@pytest.mark.parametrize("qps", [0, -1.0, np.nan, np.inf, "2", True, None])
def test_with_qps_rejects(qps: float) -> None:
    with pytest.raises(InputError, match="qps must be a finite number > 0, got"):
        workload().with_qps(qps)


def test_with_qps_needs_two_times() -> None:
    with pytest.raises(InputError, match="at least two distinct arrival times"):
        workload(1).with_qps(2.0)


def test_slice_and_rebase() -> None:
    original = workload()
    part = original.slice(20, 50)
    assert len(part) == 30
    assert (part.arrived_at_s == original.arrived_at_s[20:50]).all()
    assert part.rebased().arrived_at_s[0] == 0
    assert len(original.slice(90)) == 10
    for start, stop in [(5, 5), (-1, 4), (0, 101), (100, None), (6, 2)]:
        with pytest.raises(InputError):
            original.slice(start, stop)


def test_pickle_round_trip() -> None:
    original = workload()
    copy = pickle.loads(pickle.dumps(original))
    for name in ("arrived_at_s", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(copy, name), getattr(original, name))


@pytest.mark.parametrize("name", ["requests.csv", "requests.csv.gz"])
def test_csv_round_trip_is_exact(tmp_path: Path, name: str) -> None:
    original = workload(500)
    original.to_csv(tmp_path / name)
    read = load_trace(tmp_path / name, rebase=False)
    assert (read.arrived_at_s == original.arrived_at_s).all()
    assert (read.prompt_tokens == original.prompt_tokens).all()
    assert (read.output_tokens == original.output_tokens).all()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    first = (tmp_path / name).read_bytes()
    original.to_csv(tmp_path / name)
    assert (tmp_path / name).read_bytes() == first


def test_csv_failure_leaves_the_old_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*absent"):
        workload().to_csv(tmp_path / "absent" / "requests.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*folder"):
        workload().to_csv(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_synthetic_lengths_do_not_depend_on_arrivals() -> None:
    lengths = LognormalLengths(1000, 200, prompt_sigma=1.0, output_sigma=0.5)
    first = SyntheticWorkload(lengths, PoissonArrivals(), 2.5)
    second = SyntheticWorkload(lengths, GammaArrivals(3.0), 4.0)
    one, two = (source.sample(200, np.random.default_rng(5)) for source in (first, second))
    assert (one.prompt_tokens == two.prompt_tokens).all()
    assert (one.output_tokens == two.output_tokens).all()
    again = first.sample(200, np.random.default_rng(5))
    assert (again.arrived_at_s == one.arrived_at_s).all()


def test_synthetic_with_qps_scales_the_same_draw() -> None:
    source = SyntheticWorkload(FixedLengths(10, 5), PoissonArrivals(), 2.0)
    slow = source.sample(50, np.random.default_rng(1))
    fast = source.with_qps(8.0).sample(50, np.random.default_rng(1))
    np.testing.assert_allclose(slow.arrived_at_s, 4 * fast.arrived_at_s, rtol=1e-12)
    with pytest.raises(InputError, match="qps must be"):
        source.with_qps(0.0)


def test_trace_windows_are_contiguous_rebased_and_cover_the_trace() -> None:
    recorded = Workload(np.arange(10.0) ** 2, np.arange(1, 11), np.arange(1, 11))
    source: WorkloadSource = TraceWorkload(recorded)
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(200):
        window = source.sample(4, rng)
        start = int(window.prompt_tokens[0]) - 1
        starts.add(start)
        assert window.prompt_tokens.tolist() == list(range(start + 1, start + 5))
        expected = recorded.arrived_at_s[start : start + 4] - recorded.arrived_at_s[start]
        assert window.arrived_at_s.tolist() == expected.tolist()
    assert starts == set(range(7))
    assert len(source.sample(10, rng)) == 10
    with pytest.raises(InputError, match="n_requests=11 is more than the trace's 10"):
        source.sample(11, rng)


def test_trace_is_rescaled_as_a_whole() -> None:
    recorded = workload(1000)
    source = TraceWorkload(recorded, qps=5.0)
    assert source.sample(1000, np.random.default_rng(0)).qps == pytest.approx(5.0)
    assert source.with_qps(9.0).sample(1000, np.random.default_rng(0)).qps == pytest.approx(9.0)
    assert TraceWorkload(recorded).qps == recorded.qps
    # The factor is the trace's, so a window keeps its own busyness.
    rates = [source.sample(50, np.random.default_rng(seed)).qps for seed in range(20)]
    assert max(rates) > 5.2
    assert min(rates) < 4.8


def test_trace_with_new_arrivals_keeps_lengths() -> None:
    recorded = workload(300)
    source = TraceWorkload(recorded, 4.0, GammaArrivals(0.0))
    drawn = source.sample(300, np.random.default_rng(0))
    assert (drawn.prompt_tokens == recorded.prompt_tokens).all()
    np.testing.assert_allclose(np.diff(drawn.arrived_at_s), 0.25)
    assert source.with_qps(2.0).sample(300, np.random.default_rng(0)).qps == pytest.approx(2.0)


def test_trace_without_a_rate() -> None:
    with pytest.raises(InputError, match="give qps"):
        TraceWorkload(workload(1), arrivals=PoissonArrivals())
    assert len(TraceWorkload(workload(1)).sample(1, np.random.default_rng(0))) == 1


def test_content_follows_the_window() -> None:
    rows = [[(i, 512), (i + 1, 88)] for i in range(5)]
    recorded = Workload(np.arange(5.0), np.full(5, 600), np.full(5, 2), Content.of(rows))
    window = TraceWorkload(recorded, qps=3.0).sample(2, np.random.default_rng(3))
    assert window.content is not None
    first = window.content.streams[0]
    assert window.content.rows() == rows[first : first + 2]
