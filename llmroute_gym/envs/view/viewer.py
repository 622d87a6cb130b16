"""Shows an episode: as an array of pixels, as text, or in a window."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmroute_gym.envs.view.frame_painter import DPI, Painter, make_painter
from llmroute_gym.envs.view.snapshot import Scales, Snapshot
from llmroute_gym.envs.view.text_view import text_view

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = ["Snapshot", "Viewer"]


class Viewer:
    """Turns snapshots into pictures, text or a window; makes what it needs at the first call.

    Pictures and text depend on the snapshot and, through the ends of the axes, on the earlier
    snapshots of the episode only. Pictures leave Matplotlib's global state alone.

    Args:
        render_fps: pictures per second that the window shows at the most.
    """

    def __init__(self, render_fps: int = 8) -> None:
        self.render_fps = render_fps
        self._scales = Scales()
        self._painter: Painter | None = None
        self._window: Window | None = None
        self._windowless = False

    def frame(self, snapshot: Snapshot) -> npt.NDArray[np.uint8]:
        """Returns a picture of shape (height, width, 3); its size depends on n_replicas only."""
        if self._painter is None or self._painter.n_replicas != snapshot.n_replicas:
            self._painter = make_painter(snapshot.n_replicas)
        self._scales.follow(snapshot)
        return self._painter.paint(snapshot, self._scales)

    def text(self, snapshot: Snapshot) -> str:
        """Returns a header and one line per replica, at most 100 columns, with ANSI colours.

        Of more than 16 replicas the 16 with the most requests are listed, the rest is summed up.
        """
        self._scales.follow(snapshot)
        return text_view(snapshot, self._scales)

    def show(self, snapshot: Snapshot) -> None:
        """Shows a picture in a window; once the user has closed it, does nothing.

        Where there is no display, or Matplotlib's backend has no windows, prints the text instead.
        """
        if self._window is None and not self._windowless:
            self._window = open_window(self.render_fps)
            self._windowless = self._window is None
        if self._window is None:
            print(self.text(snapshot))
        else:
            self._window.show(self.frame(snapshot))

    def close(self) -> None:
        """Closes the window and forgets the episode; may be called more than once."""
        if self._window is not None:
            self._window.close()
        self._window = self._painter = None
        self._scales = Scales()


def open_window(render_fps: int) -> Window | None:
    """Opens a window for pictures, or returns None where none can be opened."""
    from matplotlib import pyplot as plt

    try:
        figure = plt.figure(dpi=DPI)
    except Exception:  # each toolkit raises its own class where there is no display
        return None
    if figure.canvas.required_interactive_framework is None:
        plt.close(figure)
        return None
    return Window(figure, render_fps)


class Window:
    """A window of Matplotlib's backend that shows one picture after the other.

    Args:
        figure: of a backend with windows.
        render_fps: pictures per second at the most.
    """

    def __init__(self, figure: Figure, render_fps: int) -> None:
        self._figure = figure
        self._interval_s = 1.0 / render_fps
        self._shown_at_s = 0.0
        self._image: AxesImage | None = None

    def show(self, picture: npt.NDArray[np.uint8]) -> None:
        """Shows a picture of shape (height, width, 3); nothing once the window is closed."""
        from matplotlib import pyplot as plt

        if not plt.fignum_exists(self._figure.number):
            return
        if self._image is None or self._image.get_size() != picture.shape[:2]:
            self._image = self._place(picture)
        self._image.set_data(picture)
        self._figure.canvas.draw_idle()
        wait_s = self._shown_at_s + self._interval_s - time.monotonic()
        self._figure.canvas.start_event_loop(max(wait_s, 0.001))
        self._shown_at_s = time.monotonic()

    def close(self) -> None:
        """Closes the window, if the user has not."""
        from matplotlib import pyplot as plt

        plt.close(self._figure)

    def _place(self, picture: npt.NDArray[np.uint8]) -> AxesImage:
        height, width = picture.shape[:2]
        self._figure.clear()
        self._figure.set_size_inches(width / DPI, height / DPI)
        axes = self._figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        image = axes.imshow(picture)
        self._figure.show()
        return image
