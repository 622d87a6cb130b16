"""The page of a suite: whole, safe, self-contained, and drawn by a browser without a complaint."""

import base64
import gzip
import html
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmroute_gym.compare.html.palette import AT_FIRST, drawn_at_first, styles
from llmroute_gym.compare.html.report import REPORT_FILE, page, write_report
from llmroute_gym.compare.suites.result import SuiteResult
from llmroute_gym.compare.suites.timeline import Course, Timeline
from tests.compare.suites.some import HOSTILE, HOSTILE_SCENARIO, ORACLE, some_suite

VOID = {"meta", "link", "br", "wbr", "input", "img", "hr"}
BROWSERS = (
    *("chromium-headless-shell", "chrome-headless-shell", "chromium", "chromium-browser"),
    *("google-chrome", "google-chrome-stable"),
)


class Parsed(HTMLParser):
    """Every element of a page, with its attributes; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        else:
            self.words.append(data)


def some_course(router: str, n_replicas: int = 4) -> Course:
    rng = np.random.default_rng(len(router))
    at_s = np.sort(rng.uniform(0, 60, 200))
    shape = (200, n_replicas)
    share = rng.uniform(0, 1, shape)
    share[:20] = np.nan
    return Course(
        router,
        at_s,
        rng.integers(-1, n_replicas, 200),
        rng.integers(0, 9, shape).astype(float),
        rng.integers(0, 30, shape).astype(float),
        rng.uniform(0, 1, shape),
        share,
    )


@pytest.fixture(scope="module")
def suite() -> SuiteResult:
    return some_suite()


@pytest.fixture(scope="module")
def timelines() -> list[Timeline]:
    courses = (some_course("lor"), some_course(HOSTILE))
    return [Timeline("equal_70", "of <four> replicas", 30.0, 60.0, courses)]


@pytest.fixture(scope="module")
def text(suite: SuiteResult, timelines: list[Timeline]) -> str:
    return page(suite, timelines)


@pytest.fixture(scope="module")
def parsed(text: str) -> Parsed:
    return Parsed(text)


@pytest.fixture(scope="module")
def figures(parsed: Parsed) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(unpacked(parsed.scripts[0]))
    return found


def unpacked(text: str) -> str:
    return gzip.decompress(base64.b64decode(text, validate=True)).decode()


def test_nothing_is_loaded_from_anywhere(parsed: Parsed) -> None:
    for tag, attributes in parsed.elements:
        assert tag not in ("img", "iframe", "object", "embed", "audio", "video")
        assert "src" not in attributes
        if tag == "link":
            assert attributes["href"] == "data:,"
    assert not any(word in "".join(parsed.words) for word in ("@import", "url("))
    (policy,) = (each["content"] for _, each in parsed.elements if "http-equiv" in each)
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def test_the_library_is_inside_and_small(parsed: Parsed, text: str) -> None:
    assert "plotly.js v" in unpacked(parsed.scripts[1])[:200]
    assert len(text) < 3_000_000


def test_every_router_and_scenario_is_there(
    parsed: Parsed, suite: SuiteResult, figures: dict[str, Any]
) -> None:
    words = "".join(parsed.words)
    for name in (*suite.routers, *(one.name for one in suite.scenarios)):
        assert name in words
    chips = [each["data-router"] for _, each in parsed.elements if "data-router" in each]
    assert chips == list(suite.routers)
    drawn = {trace.get("meta") for figure in figures.values() for trace in figure["data"]}
    assert drawn - {None} == set(suite.routers)
    places = [each["data-figure"] for _, each in parsed.elements if "data-figure" in each]
    assert sorted(str(place) for place in places) == sorted(figures)


def test_hostile_names_are_text(parsed: Parsed) -> None:
    assert sum(tag == "script" for tag, _ in parsed.elements) == 3
    assert not {"b", "i", "four", "absent"} & {tag for tag, _ in parsed.elements}
    assert HOSTILE in "".join(parsed.words)
    assert HOSTILE_SCENARIO in "".join(parsed.words)


def test_plotly_is_given_no_tags(figures: dict[str, Any]) -> None:
    names = {
        trace["name"]
        for figure in figures.values()
        for trace in figure["data"]
        if trace.get("meta") == HOSTILE and "name" in trace
    }
    assert names == {html.escape(HOSTILE)}
    ticks = figures["regret"]["layout"]["yaxis"]["ticktext"]
    assert html.escape(HOSTILE_SCENARIO) in ticks


def test_figures_are_what_plotly_knows(figures: dict[str, Any]) -> None:
    graph = pytest.importorskip("plotly.graph_objects")
    for figure in figures.values():
        known = graph.Figure(data=figure["data"], layout=figure["layout"])
        assert len(known.data) == len(figure["data"])


def test_an_unstable_router_has_no_number(
    text: str, suite: SuiteResult, figures: dict[str, Any]
) -> None:
    place = [one.name for one in suite.scenarios].index("equal_95")
    table = text[text.index(f'id="scenario-{place}"') :]
    row = re.search(r"<tr><th[^>]*><svg.*?</svg> random</th>(.*?)</tr>", table)
    assert row is not None
    assert "unstable: 0.250 more requests wait each second" in row[1]
    assert "data-value" not in row[1]
    metas = [trace.get("meta") for trace in figures[f"tail-{place}-e2e"]["data"]]
    assert "random" not in metas
    assert "lor" in metas
    (line,) = (
        trace
        for trace in figures["along-0-e2e_p99_s"]["data"]
        if trace["meta"] == "random" and "fill" not in trace
    )
    assert line["y"][2] is None
    assert "random in equal_95 (+0.250 requests/s)" in text


def test_infinity_is_shown_beside_the_served(text: str) -> None:
    assert "∞<small>of served " in text
    assert "Infinity" not in text.split('id="library"')[0]


def test_upper_bounds_stand_apart(text: str, figures: dict[str, Any], suite: SuiteResult) -> None:
    assert all(trace["meta"] != ORACLE for trace in figures["regret"]["data"])
    for table in re.findall(r"<table>.*?</table>", text):
        first, *rest = re.findall(r"<tbody.*?</tbody>", table)
        assert "</svg> oracle</th>" not in first
        assert any("</svg> oracle</th>" in body for body in rest)
    drawn = styles(suite)
    assert [one for one in drawn if drawn[one].colour == "#000000"] == [ORACLE]


def test_routers_look_alike_nowhere(suite: SuiteResult) -> None:
    many = replace(suite, routers=tuple(f"rule_{number}" for number in range(35)), scenarios=())
    assert len(set(styles(many).values())) == 35
    first = drawn_at_first(suite)
    assert len(first) == AT_FIRST
    assert "round_robin" in first
    assert ORACLE not in first


def test_the_same_results_give_the_same_bytes(
    suite: SuiteResult, timelines: list[Timeline], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        write_report(suite, timelines, tmp_path / name)
    written = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert written == ["heat_map.png", "load.png", REPORT_FILE, "tails.png"]
    for name in written:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_suite_of_one_scenario_has_a_page(suite: SuiteResult, tmp_path: Path) -> None:
    write_report(replace(suite, scenarios=suite.scenarios[:1]), [], tmp_path)
    found = Parsed((tmp_path / REPORT_FILE).read_text(encoding="utf-8"))
    ids = {each.get("id") for _, each in found.elements}
    assert {"heat-map", "load", "regret", "scenarios"} <= ids
    assert "timelines" not in ids


def browser() -> str:
    """Returns where a Chromium is, or skips the test."""
    if not find_spec("playwright"):
        pytest.skip("playwright is not installed; pip install -e '.[dev]'")
    from playwright.sync_api import sync_playwright

    named = os.environ.get("LLMROUTE_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        with sync_playwright() as playwright:
            found = playwright.chromium.executable_path
    if not Path(found).exists():
        pytest.skip(
            "no Chromium is found; put one on PATH (such as Debian's chromium-headless-shell), "
            "name it in LLMROUTE_CHROMIUM, or run: playwright install chromium"
        )
    return str(found)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path)
        yield opened
        opened.close()


@pytest.mark.cli
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_it_without_complaint(
    chromium: Any, text: str, tmp_path: Path, width: int
) -> None:
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    context = chromium.new_context(viewport={"width": width, "height": 844}, has_touch=width < 500)
    shown = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(file.as_uri())
    shown.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    for chart in shown.locator(".chart").all():
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for()
    shown.locator(".chart:not([data-drawn])").first.wait_for(state="detached")
    sizes = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    whole, visible = shown.evaluate(sizes)
    assert whole == visible == width
    wide = "[...document.querySelectorAll('.chart svg')].filter((s) => s.clientWidth > innerWidth)"
    assert shown.evaluate(f"{wide}.length") == 0

    _check_sorting(shown)
    _check_choice(shown)
    assert shown.evaluate("window.broken") is None
    assert [url for url in asked if not url.startswith("blob:")] == [file.as_uri()]
    assert said == []
    context.close()


def _check_sorting(shown: Any) -> None:
    """A click sorts what is comparable; unstable routers and upper bounds stay below."""
    table = shown.locator("#scenario-2 table")
    values = "(t) => [...t.tBodies[0].rows].map((row) => parseFloat(row.cells[2].dataset.value))"
    for sort, reverse in (("ascending", False), ("descending", True)):
        table.locator("thead button").nth(2).click()
        assert table.locator("thead th").nth(2).get_attribute("aria-sort") == sort
        found = table.evaluate(values)
        assert found == sorted(found, reverse=reverse)
    names = table.evaluate("(t) => [...t.rows].map((row) => row.cells[0].textContent.trim())")
    assert names[-1] == ORACLE
    assert names[-3] == "random"


def _check_choice(shown: Any) -> None:
    """A router's button hides it in every chart; the heat map follows its two choices."""
    chart = shown.locator(".chart").first
    visible = "(c) => c.data.filter((t) => t.meta === 'lor').map((t) => t.visible)"
    before = chart.evaluate(visible)
    shown.locator("#routers button[data-router=lor]").click()
    assert chart.evaluate(visible) == [not one for one in before]
    shown.locator(".choice select").nth(0).select_option("ttft_p99_s")
    shown.locator(".choice select").nth(1).select_option("best")
    maps = "[...document.querySelectorAll('[data-map]')].filter((m) => !m.hidden)"
    assert shown.evaluate(f"{maps}.map((m) => m.dataset.map)") == ["ttft_p99_s best"]
