import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

from llmroute_gym.envs.view.snapshot import Scales, nice_end, seconds, short
from llmroute_gym.envs.view.viewer import Snapshot, Viewer
from llmroute_gym.ground.signals import N_SIGNALS, Signal


def snapshot(n: int = 4, request: int = 40, completed: int = 30, load: int = 8) -> Snapshot:
    rng = np.random.default_rng(n)
    rows = np.zeros((n, N_SIGNALS))
    rows[:, Signal.RUNNING] = rng.integers(0, load, n)
    rows[:, Signal.WAITING] = rng.integers(0, load, n)
    rows[:, Signal.KV_USAGE] = rng.random(n)
    rows[:, [Signal.SPEED, Signal.AVAILABLE]] = 1.0
    e2e_s = tuple(rng.exponential(5.0, completed) for _ in range(n))
    return Snapshot(
        time_s=float(request),
        request=request,
        n_requests=500,
        rows=rows,
        mask=np.ones(n, dtype=np.bool_),
        last_replica=0,
        recent_e2e_s=e2e_s,
        recent_ttft_s=tuple(0.1 * values for values in e2e_s),
        reward=-0.5,
        episode_return=-20.0,
        latency_threshold_s=6.0,
        title="LLMRoute-v0",
    )


def plain_lines(text: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n")


@pytest.mark.parametrize("n", [1, 4, 16, 17, 64])
def test_a_frame_is_an_rgb_picture_that_encoders_accept(n: int) -> None:
    frame = Viewer().frame(snapshot(n))
    height, width, channels = frame.shape
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    assert (width, channels) == (1024, 3)
    assert height % 16 == 0
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize("n", [4, 64])
def test_frames_of_an_episode_keep_their_size_and_do_not_share_memory(n: int) -> None:
    viewer = Viewer()
    first = viewer.frame(snapshot(n, load=4, completed=0))
    kept = first.copy()
    second = viewer.frame(snapshot(n, request=41, load=900))
    assert first.shape == second.shape
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("n", [4, 17])
def test_the_same_snapshot_gives_the_same_pixels(n: int) -> None:
    viewer = Viewer()
    first = viewer.frame(snapshot(n))
    np.testing.assert_array_equal(first, viewer.frame(snapshot(n)))
    np.testing.assert_array_equal(first, Viewer().frame(snapshot(n)))


@pytest.mark.parametrize("n", [4, 17])
def test_nothing_of_an_earlier_frame_is_left(n: int) -> None:
    viewer = Viewer()
    viewer.frame(dataclasses.replace(snapshot(n), last_replica=n - 1, title="another title"))
    np.testing.assert_array_equal(viewer.frame(snapshot(n)), Viewer().frame(snapshot(n)))


@pytest.mark.parametrize("n", [4, 17])
def test_the_chosen_replica_is_marked_where_it_is_drawn(n: int) -> None:
    viewer = Viewer()
    unmarked = viewer.frame(dataclasses.replace(snapshot(n), last_replica=None))
    centres = []
    for replica in range(n):
        marked = viewer.frame(dataclasses.replace(snapshot(n), last_replica=replica))
        changed = np.argwhere((marked != unmarked).any(axis=2))
        assert len(changed) > 100
        centres.append(tuple(changed.mean(axis=0).round()))
    assert len(set(centres)) == n
    assert centres == sorted(centres)


def test_waiting_and_running_requests_look_different() -> None:
    one = snapshot(1)
    one.rows[0, [Signal.WAITING, Signal.RUNNING]] = 0, 9
    other = snapshot(1)
    other.rows[0, [Signal.WAITING, Signal.RUNNING]] = 9, 0
    viewer = Viewer()
    assert not np.array_equal(viewer.frame(one), viewer.frame(other))


@pytest.mark.parametrize("n", [1, 4, 64])
@pytest.mark.filterwarnings("error")
def test_an_episode_without_completions_reads_as_a_dash(n: int) -> None:
    empty = dataclasses.replace(snapshot(n, request=0, completed=0), last_replica=None)
    assert Viewer().frame(empty).shape[2] == 3
    text = Viewer().text(empty)
    assert "mean E2E –" in text
    assert "nan" not in text.lower()


@pytest.mark.filterwarnings("error")
def test_infinite_and_missing_numbers_are_drawn() -> None:
    odd = snapshot(2)
    odd.rows[0, Signal.KV_USAGE] = np.nan
    odd.rows[0, Signal.E2E_S] = np.inf
    odd.recent_e2e_s[0][:] = np.inf
    odd.recent_e2e_s[1][3] = np.nan
    viewer = Viewer()
    assert viewer.frame(odd).shape[2] == 3
    text = viewer.text(odd)
    assert "∞" in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize("load", [2, 9000])
@pytest.mark.parametrize("n", [1, 4, 16])
def test_text_has_one_line_per_replica_within_100_columns(n: int, load: int) -> None:
    wide = dataclasses.replace(
        snapshot(n, load=load), title="x" * 300, episode_return=-1e9, time_s=1e6, n_requests=10**7
    )
    lines = plain_lines(Viewer().text(wide))
    assert [int(re.split(r"[> ]+", line)[1]) for line in lines[-n:]] == list(range(n))
    assert len(lines) == 4 + n
    assert max(map(len, lines)) <= 100
    assert [line[0] for line in lines[-n:]] == [">"] + [" "] * (n - 1)


def test_text_of_many_replicas_lists_the_fullest_and_sums_up_the_rest() -> None:
    many = snapshot(64)
    lines = plain_lines(Viewer().text(many))
    assert len(lines) == 4 + 16 + 1
    listed = [int(re.split(r"[> ]+", line)[1]) for line in lines[4:-1]]
    rest = np.setdiff1d(np.arange(64), listed)
    assert many.in_system[listed].min() >= many.in_system[rest].max()
    running, waiting = many.rows[rest][:, [Signal.RUNNING, Signal.WAITING]].sum(axis=0)
    assert lines[-1].startswith("and 48 more replicas")
    assert f"{running:.0f} running, {waiting:.0f} waiting" in lines[-1]
    assert max(map(len, lines)) <= 100


def test_text_tells_who_cannot_be_chosen() -> None:
    some = snapshot(4)
    some.mask[1] = False
    some.rows[2, Signal.AVAILABLE] = 0.0
    some.rows[3, Signal.SPEED] = 0.5
    lines = plain_lines(Viewer().text(some))[-4:]
    assert "too small" in lines[1]
    assert "down" in lines[2]
    assert "×0.5" in lines[3]


def test_scales_only_grow_within_an_episode_and_start_anew_with_the_next() -> None:
    scales = Scales()
    scales.follow(snapshot(request=1, load=1, completed=0))
    assert scales.ends == (10.0, 10.0)
    scales.follow(snapshot(request=2, load=500))
    grown = scales.ends
    assert min(grown) > 10.0
    scales.follow(snapshot(request=3, load=1, completed=0))
    assert scales.ends == grown
    scales.follow(snapshot(request=0, load=1, completed=0))
    assert scales.ends == (10.0, 10.0)


def test_an_axis_ends_at_the_next_nice_number() -> None:
    assert [nice_end(value) for value in (0.3, 9, 10, 10.1, 21, 31, 501)] == pytest.approx(
        [0.3, 10, 10, 20, 30, 50, 1000]
    )


def test_numbers_keep_about_three_figures() -> None:
    words = [short(value) for value in (0.0, 9.994, 9.996, 99.94, 99.96, 1234.5, np.inf, np.nan)]
    assert words == ["0.00", "9.99", "10.0", "99.9", "100", "1234", "∞", "–"]
    assert seconds(2.5) == "2.50 s"


@pytest.mark.parametrize("times", [1, 2])
def test_closing_leaves_a_viewer_that_still_draws(times: int) -> None:
    viewer = Viewer()
    viewer.close()
    before = viewer.frame(snapshot())
    for _ in range(times):
        viewer.close()
    np.testing.assert_array_equal(before, viewer.frame(snapshot()))


@pytest.mark.cli
def test_pictures_leave_matplotlib_alone() -> None:
    script = (
        "import sys, numpy as np\n"
        "from llmroute_gym.envs.view.viewer import Snapshot, Viewer\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import matplotlib; before = dict(dict.items(matplotlib.rcParams))\n"
        "rows = np.zeros((1, 18)); none = (np.empty(0),)\n"
        "Viewer().frame(Snapshot(0.0, 0, 1, rows, rows[:, 0] == 0, None, none, none, 0.0, 0.0,"
        " 6.0, ''))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert dict(dict.items(matplotlib.rcParams)) == before\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.fixture
def agg_backend() -> Iterator[None]:
    before = matplotlib.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


@pytest.mark.usefixtures("agg_backend")
def test_without_a_display_show_prints_the_text_and_leaves_no_figure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    viewer = Viewer()
    viewer.show(snapshot())
    assert capsys.readouterr().out == Viewer().text(snapshot()) + "\n"
    assert plt.get_fignums() == []
    viewer.close()


@pytest.mark.usefixtures("agg_backend")
def test_a_window_shows_the_frame_until_the_user_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", "fake")
    monkeypatch.setattr(FigureManagerBase, "show", lambda self: None)
    viewer = Viewer(render_fps=1000)
    for request in (1, 2):
        viewer.show(snapshot(request=request))
        (figure,) = map(plt.figure, plt.get_fignums())
        shown = figure.axes[0].images[0].get_array()
        np.testing.assert_array_equal(shown, Viewer().frame(snapshot(request=request)))
    plt.close(figure)
    viewer.show(snapshot(request=3))
    assert plt.get_fignums() == []
    viewer.close()
    viewer.show(snapshot())
    assert len(plt.get_fignums()) == 1
    viewer.close()
    assert plt.get_fignums() == []
