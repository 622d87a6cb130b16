"""An episode as a picture: a header of figures over a table or a grid of replicas.

The picture is laid out in pixels, y downwards. All artists are made once and then only moved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from llmroute_gym.envs.view.snapshot import RECENT, Scales, Snapshot, short
from llmroute_gym.ground.signals import Signal

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.font_manager import FontProperties
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text

WIDTH = 1024
DPI = 100
MARGIN = 24
TOP = 180
"""Where the replicas begin; above it are the header and the column titles."""
BLOCK = 16
"""Heights are multiples of it: video encoders want that."""
MOST_ROWS = 16
"""Replicas that the table can hold; more go into the grid."""

# Blue, orange, vermilion and green after Okabe and Ito, "Color Universal Design", 2008.
INK, GREY, RULE, TRACK = "#1f2933", "#6b7780", "#e3e7ea", "#edf0f2"
RUNNING, WAITING, LATE, KV = "#0072b2", "#e69f00", "#d55e00", "#009e73"
CHOSEN, STRIP_LINE = "#fdf3d7", "#b9c6d0"
HALVES = (0.0, 0.5, 1.0)
COLD, HOT = np.array([0.945, 0.961, 0.973]), np.array([0.0, 0.318, 0.529])

Align = Literal["left", "center", "right"]
Dashes = Literal["-", "--", "none"]
Color = str | tuple[float, float, float]


def make_painter(n_replicas: int) -> Painter:
    """Returns the painter that suits the number of replicas."""
    return (TablePainter if n_replicas <= MOST_ROWS else GridPainter)(n_replicas)


class Painter(ABC):
    """Draws the header; a subclass draws the replicas below it.

    What changes only with the title or the scales is drawn once and kept as a backdrop.

    Args:
        n_replicas: replicas of the cluster.
    """

    def __init__(self, n_replicas: int) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.n_replicas = n_replicas
        self.height = -(-(TOP + self.body_height() + 12) // BLOCK) * BLOCK
        figure = Figure((WIDTH / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        self._canvas: Any = FigureCanvasAgg(figure)  # Matplotlib leaves its methods untyped
        self._axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self._axes.set_axis_off()
        self._axes.set_xlim(0, WIDTH)
        self._axes.set_ylim(self.height, 0)
        self._moving: list[Artist] = []
        self._backdrop: Any = None
        self._backdrop_shows: tuple[object, ...] = ()
        self._add_header()
        self._add_body()

    def paint(self, snapshot: Snapshot, scales: Scales) -> npt.NDArray[np.uint8]:
        """Returns the picture of a snapshot, shape (height, WIDTH, 3)."""
        self._title.set_text(shortened(snapshot.title))
        for cell, (_, value) in zip(self._figures, snapshot.figures(), strict=True):
            cell.set_text(value)
        share = snapshot.request / max(snapshot.n_requests, 1)
        self._progress.set_width((WIDTH - 2 * MARGIN) * min(share, 1.0))
        self._paint_scales(snapshot, scales)
        self._paint_body(snapshot, scales)
        self._draw((snapshot.title, snapshot.latency_threshold_s, *scales.ends))
        pixels = np.asarray(self._canvas.buffer_rgba())
        return np.ascontiguousarray(pixels[:, :, :3], dtype=np.uint8)

    def _draw(self, backdrop_shows: tuple[object, ...]) -> None:
        if backdrop_shows != self._backdrop_shows:
            self._canvas.draw()  # leaves out what is animated
            self._backdrop = self._canvas.copy_from_bbox(self._canvas.figure.bbox)
            self._backdrop_shows = backdrop_shows
        self._canvas.restore_region(self._backdrop)
        renderer = self._canvas.get_renderer()
        for artist in self._moving:
            artist.draw(renderer)

    @abstractmethod
    def body_height(self) -> int:
        """Returns the pixels that the replicas need."""

    @abstractmethod
    def _add_body(self) -> None:
        """Makes the artists of the replicas, in the order in which they cover each other."""

    @abstractmethod
    def _paint_scales(self, snapshot: Snapshot, scales: Scales) -> None:
        """Words the still artists."""

    @abstractmethod
    def _paint_body(self, snapshot: Snapshot, scales: Scales) -> None:
        """Places the moving artists."""

    def _add_header(self) -> None:
        names = ("time", "request", "arrivals", "completions", "mean E2E", "reward", "return")
        self._title = self.text(MARGIN, 26, 17, bold=True, still=True)
        self.box(MARGIN, 46, WIDTH - 2 * MARGIN, 4, TRACK, still=True)
        self._progress = self.box(MARGIN, 46, 0, 4, INK)
        width = (WIDTH - 2 * MARGIN) / len(names)
        self._figures = []
        for position, name in enumerate(names):
            left = MARGIN + position * width
            self.label(left, 68, name)
            self._figures.append(self.text(left, 89, 17))
        self.box(0, 110, WIDTH, 1, RULE, still=True)

    def label(self, x: float, y: float, text: str = "", align: Align = "left") -> Text:
        """Adds a small grey text that stays."""
        return self.text(x, y, 12, text, GREY, align, still=True)

    def text(
        self,
        x: float,
        y: float,
        pixels: float,
        text: str = "",
        color: str = INK,
        align: Align = "left",
        bold: bool = False,
        still: bool = False,
    ) -> Text:
        """Adds a text that is centred on height y."""
        artist = self._axes.text(
            x,
            y,
            text,
            color=color,
            fontproperties=_font(pixels, bold),
            ha=align,
            va="center_baseline",
            parse_math=False,
            usetex=False,
            animated=not still,
        )
        self._moving += [] if still else [artist]
        return artist

    def box(
        self, x: float, y: float, width: float, height: float, color: Color, still: bool = False
    ) -> Rectangle:
        """Adds a filled rectangle without an edge, x and y at its upper left."""
        from matplotlib.patches import Rectangle

        patch = Rectangle((x, y), width, height, color=color, linewidth=0, animated=not still)
        self._axes.add_artist(patch)
        self._moving += [] if still else [patch]
        return patch

    def marks(self, color: str, marker: str = "", line: Dashes = "none") -> Line2D:
        """Adds moving marks, or a line that a NaN breaks."""
        from matplotlib.lines import Line2D

        artist = Line2D([], [], color=color, marker=marker, linestyle=line, linewidth=1.0)
        artist.set(markersize=5.0 * 72 / DPI, markeredgewidth=0.0, animated=True)
        self._axes.add_artist(artist)
        self._moving.append(artist)
        return artist


class TablePainter(Painter):
    """One row per replica: requests, KV cache, the last latencies and their P95."""

    BAR: ClassVar = (150, 356)  # left and right ends, pixels
    GAUGE: ClassVar = (516, 596)
    STRIP: ClassVar = (664, 884)
    RUNNING_X, WAITING_X, KV_X, E2E_X, TTFT_X = 434, 492, 642, 942, 1000

    def body_height(self) -> int:
        """Returns the height of all rows."""
        return self.n_replicas * self.row_height

    @property
    def row_height(self) -> int:
        """Returns the height of a row: the fewer replicas, the higher."""
        return min(max(400 // self.n_replicas, 36), 160)

    def _add_body(self) -> None:
        self._add_titles()
        for replica in range(self.n_replicas + 1):
            self.box(0, TOP + replica * self.row_height, WIDTH, 1, RULE, still=True)
        self._chosen = [
            self.box(0, TOP, WIDTH, self.row_height - 1, CHOSEN),
            self.box(0, TOP, 6, self.row_height - 1, INK),
        ]
        for share in HALVES:
            self.box(self._tick_x(share), TOP + 1, 1, self.body_height() - 1, RULE)
        self._names: list[Text] = []
        self._states: list[Text] = []
        self._numbers: list[list[Text]] = []
        self._running: list[Rectangle] = []
        self._waiting: list[Rectangle] = []
        self._usage: list[Rectangle] = []
        for replica in range(self.n_replicas):
            self._add_row(replica)
        self._limits = self.marks(GREY, line="--")
        self._strips = self.marks(STRIP_LINE, line="-")
        self._dots = self.marks(RUNNING, marker="o")
        self._late = self.marks(LATE, marker="D")

    def _tick_x(self, share: float) -> float:
        return self.BAR[0] + share * (self.BAR[1] - self.BAR[0])

    def _add_titles(self) -> None:
        above, below = 132, 160
        self.label(MARGIN, above, "replica")
        self.label(self.BAR[0], above, "requests")
        self._ticks = [self.label(self._tick_x(share), below, "", "center") for share in HALVES]
        for right, name, color in (
            (self.RUNNING_X, "running", RUNNING),
            (self.WAITING_X, "waiting", WAITING),
        ):
            self.label(right, above, name, "right")
            self.box(right - 48, below - 5, 48, 10, color, still=True)
        self.label(self.GAUGE[0], above, "KV cache in use")
        self.label(self.STRIP[0], above, f"E2E of the last {RECENT} requests")
        self._strip_title = self.label(self.STRIP[0], below)
        self.label(self.TTFT_X, above, "P95 in s", "right")
        self.label(self.E2E_X, below, "E2E", "right")
        self.label(self.TTFT_X, below, "TTFT", "right")

    def _add_row(self, replica: int) -> None:
        top = TOP + replica * self.row_height
        middle = top + self.row_height / 2
        thick = min(self.row_height // 2, 40)
        bar_top = top + (self.row_height - thick) // 2
        self._names.append(self.text(MARGIN, middle, 14, str(replica)))
        self._states.append(self.text(self.BAR[0] - 14, middle, 12, "", GREY, "right"))
        self._running.append(self.box(self.BAR[0], bar_top, 0, thick, RUNNING))
        self._waiting.append(self.box(self.BAR[0], bar_top, 0, thick, WAITING))
        self.box(self.GAUGE[0], bar_top, self.GAUGE[1] - self.GAUGE[0], thick, TRACK)
        self._usage.append(self.box(self.GAUGE[0], bar_top, 0, thick, KV))
        self._numbers.append(
            [
                self.text(x, middle, 14, "", INK, "right")
                for x in (self.RUNNING_X, self.WAITING_X, self.KV_X, self.E2E_X, self.TTFT_X)
            ]
        )

    def _paint_scales(self, snapshot: Snapshot, scales: Scales) -> None:
        for tick, share in zip(self._ticks, HALVES, strict=True):
            tick.set_text(f"{share * scales.requests:g}")
        limit_s = snapshot.latency_threshold_s
        self._strip_title.set_text(f"0 to {scales.latency_s:g} s, limit {limit_s:g} s")

    def _paint_body(self, snapshot: Snapshot, scales: Scales) -> None:
        for part in self._chosen:
            part.set_visible(snapshot.last_replica is not None)
            part.set_y(TOP + 1 + (snapshot.last_replica or 0) * self.row_height)
        for replica in range(self.n_replicas):
            self._paint_bars(snapshot, scales, replica)
            self._paint_words(snapshot, replica)
        self._paint_strips(snapshot, scales)

    def _paint_bars(self, snapshot: Snapshot, scales: Scales, replica: int) -> None:
        scale = (self.BAR[1] - self.BAR[0]) / scales.requests
        running = scale * float(snapshot.column(Signal.RUNNING)[replica])
        waiting = scale * float(snapshot.column(Signal.WAITING)[replica])
        self._running[replica].set_width(running)
        self._waiting[replica].set_x(self.BAR[0] + running)
        self._waiting[replica].set_width(waiting)
        usage = min(max(float(snapshot.column(Signal.KV_USAGE)[replica]), 0.0), 1.0)
        self._usage[replica].set_width(usage * (self.GAUGE[1] - self.GAUGE[0]))

    def _paint_words(self, snapshot: Snapshot, replica: int) -> None:
        self._names[replica].set_color(INK if snapshot.mask[replica] else GREY)
        self._states[replica].set_text(snapshot.status(replica))
        e2e_s = snapshot.e2e_p95_s(replica)
        words = (
            f"{snapshot.column(Signal.RUNNING)[replica]:.0f}",
            f"{snapshot.column(Signal.WAITING)[replica]:.0f}",
            f"{snapshot.column(Signal.KV_USAGE)[replica]:.0%}",
            short(e2e_s),
            short(snapshot.ttft_p95_s(replica)),
        )
        for cell, word in zip(self._numbers[replica], words, strict=True):
            cell.set_text(word)
        self._numbers[replica][3].set_color(LATE if e2e_s > snapshot.latency_threshold_s else INK)

    def _paint_strips(self, snapshot: Snapshot, scales: Scales) -> None:
        left, right = self.STRIP
        inner = self.row_height - 12
        slots = np.linspace(left + 4, right - 4, RECENT)
        points, limits = [np.empty((0, 3))], []
        for replica in range(self.n_replicas):
            floor = TOP + (replica + 1) * self.row_height - 6
            y = floor - inner * snapshot.latency_threshold_s / scales.latency_s
            limits += [(left, y), (right, y), (np.nan, np.nan)]
            latencies_s = snapshot.latencies_s(replica)
            shares = np.nan_to_num(latencies_s / scales.latency_s, nan=0.0, posinf=1.0)
            x = slots[RECENT - len(shares) :]
            late = latencies_s > snapshot.latency_threshold_s
            points.append(np.column_stack([x, floor - inner * np.clip(shares, 0, 1), late]))
            points.append(np.full((1, 3), np.nan))
        x, y, late = np.concatenate(points).T
        self._limits.set_data(*np.array(limits).T)
        self._strips.set_data(x, y)
        self._dots.set_data(x[late == 0], y[late == 0])
        self._late.set_data(x[late == 1], y[late == 1])


class GridPainter(Painter):
    """One tile per replica, the darker the more requests it holds."""

    COLUMNS: ClassVar = 8
    TILE: ClassVar = (118, 62)  # width and height, pixels
    STEP: ClassVar = (122, 68)

    def body_height(self) -> int:
        """Returns the height of all rows of tiles."""
        return -(-self.n_replicas // self.COLUMNS) * self.STEP[1]

    def _add_body(self) -> None:
        self._add_legend()
        self._tiles: list[Rectangle] = []
        self._usage: list[Rectangle] = []
        self._late: list[Rectangle] = []
        self._words: list[list[Text]] = []
        self._frame = self.box(0, 0, self.TILE[0] + 6, self.TILE[1] + 6, INK)
        for replica in range(self.n_replicas):
            self._add_tile(replica)

    def corner(self, replica: int) -> tuple[int, int]:
        """Returns the upper left of a replica's tile, pixels."""
        row, column = divmod(replica, self.COLUMNS)
        return MARGIN + column * self.STEP[0], TOP + row * self.STEP[1]

    def _add_legend(self) -> None:
        above, below = 132, 158
        self.label(MARGIN, above, "requests running + waiting")
        for step in range(120):
            self.box(MARGIN + step, below - 6, 1, 12, _shade(step / 119), still=True)
        self._end = self.label(MARGIN + 128, below)
        self.label(330, above, f"upper right: P95 of E2E in s, last {RECENT} requests")
        self.box(330, below - 5, 10, 10, LATE, still=True)
        self._limit = self.label(348, below)
        self.label(740, above, "KV cache in use")
        self.box(740, below - 3, 120, 6, TRACK, still=True)
        self.box(740, below - 3, 50, 6, KV, still=True)

    def _add_tile(self, replica: int) -> None:
        x, y = self.corner(replica)
        width, height = self.TILE
        self._tiles.append(self.box(x, y, width, height, TRACK))
        self.box(x + 6, y + height - 11, width - 12, 6, "white")
        self._usage.append(self.box(x + 6, y + height - 11, 0, 6, KV))
        self._late.append(self.box(x + width - 46, y + 3, 43, 19, LATE))
        self._words.append(
            [
                self.text(x + 6, y + 13, 12, str(replica)),
                self.text(x + 6, y + 36, 15),
                self.text(x + width - 7, y + 13, 12, "", INK, "right"),
                self.text(x + 28, y + 13, 10),
            ]
        )

    def _paint_scales(self, snapshot: Snapshot, scales: Scales) -> None:
        self._end.set_text(f"0 to {scales.requests:g}")
        self._limit.set_text(f"over the limit of {snapshot.latency_threshold_s:g} s")

    def _paint_body(self, snapshot: Snapshot, scales: Scales) -> None:
        self._frame.set_visible(snapshot.last_replica is not None)
        x, y = self.corner(snapshot.last_replica or 0)
        self._frame.set_xy((x - 3, y - 3))
        for replica in range(self.n_replicas):
            self._paint_tile(snapshot, scales, replica)

    def _paint_tile(self, snapshot: Snapshot, scales: Scales, replica: int) -> None:
        running = float(snapshot.column(Signal.RUNNING)[replica])
        waiting = float(snapshot.column(Signal.WAITING)[replica])
        heat = min((running + waiting) / scales.requests, 1.0)
        self._tiles[replica].set_facecolor(_shade(heat))
        usage = min(max(float(snapshot.column(Signal.KV_USAGE)[replica]), 0.0), 1.0)
        self._usage[replica].set_width(usage * (self.TILE[0] - 12))
        e2e_s = snapshot.e2e_p95_s(replica)
        late = e2e_s > snapshot.latency_threshold_s
        self._late[replica].set_visible(late)
        counts = f"{running:.0f}" + (f" + {waiting:.0f}" if waiting else "")
        words = (str(replica), counts, short(e2e_s), snapshot.status(replica))
        for cell, word in zip(self._words[replica], words, strict=True):
            cell.set_text(word)
            cell.set_color("white" if heat > 0.7 else INK)
        if late:
            self._words[replica][2].set_color("white")


def _font(pixels: float, bold: bool) -> FontProperties:
    """Returns the font that ships with Matplotlib, whatever else is installed."""
    import matplotlib
    from matplotlib.font_manager import FontProperties

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    return FontProperties(fname=path, size=pixels * 72 / DPI)


def _shade(heat: float) -> tuple[float, float, float]:
    red, green, blue = (COLD + heat * (HOT - COLD)).tolist()
    return red, green, blue


def shortened(title: str, characters: int = 80) -> str:
    """Returns a title that fits the picture's width."""
    return title if len(title) <= characters else title[: characters - 1] + "…"
