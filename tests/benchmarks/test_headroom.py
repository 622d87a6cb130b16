"""The page of headroom says who wins and who loses, as the table of results has it."""

from pathlib import Path

import headroom
import headroom_page
import pytest
from headroom import Row

from llmroute_gym.compare.statistics import Estimate


def rows(scenario: str, seconds: dict[tuple[str, str], float]) -> list[Row]:
    """Both metrics of some routers, with intervals of 1% and no luck."""

    def around(value: float) -> Estimate:
        return Estimate(value, 0.99 * value, 1.01 * value)

    learned = seconds["learned", "learned"]
    simple = min(value for (kind, _), value in seconds.items() if kind == "simple")
    return [
        Row(scenario, metric, *key, *map(around, (value, learned / value, value / simple)))
        for metric in headroom.METRICS
        for key, value in seconds.items()
    ]


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> headroom_page.Lines:
    monkeypatch.setattr(headroom, "RESULTS", tmp_path / "headroom.csv")
    common = {("simple", "lor"): 2.0, ("as shipped", "preble"): 1.0, ("tuned", "preble"): 1.1}
    won = rows("agent_loop", common | {("learned", "learned"): 0.85})
    lost = rows("mooncake", common | {("learned", "learned"): 1.2, ("oracle", "oracle"): 0.5})
    headroom.write_rows([*won, *lost])
    return headroom_page.Lines.read(headroom.RESULTS)


def test_a_rule_that_tuning_made_worse_counts_as_shipped(lines: headroom_page.Lines) -> None:
    best = lines.needed("agent_loop", "ttft_p99_s", "tuned")
    assert (best.kind, best.seconds.value) == ("as shipped", 1.0)
    assert best.learned_over_it == pytest.approx((0.85, 0.8415, 0.8585))
    assert lines.best("agent_loop", "ttft_p99_s", "oracle") is None


def test_the_page_names_wins_and_losses(
    lines: headroom_page.Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headroom_page, "PAGE", tmp_path / "headroom.md")
    monkeypatch.setattr(headroom_page, "PICTURE", tmp_path / "headroom.png")
    headroom_page.write_page(headroom.RESULTS, "By hand.")
    page = headroom_page.PAGE.read_text(encoding="utf-8")
    assert "interval below 1: agent_loop 0.85 [0.84, 0.86]. Less" in page
    assert "Above 1.03: mooncake 1.20 [1.19, 1.21]. Level: 0 of 2." in page
    assert "| mooncake | lor, 2 s | 0.50 (preble) | 0.50 (preble) | 0.60 | 0.25 |" in page
    assert headroom_page.PICTURE.stat().st_size > 10_000


def test_what_is_tuned_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(headroom.subprocess, "run", lambda command, **_: ran.append(command))
    headroom.tune(tmp_path, "agent_loop", "llmd_default:view=events", tmp_path)
    assert "search.router='llmd_default:view=events'" in ran[0]
    file = headroom.tuned_file(tmp_path, "agent_loop", "llmd_default:view=events")
    file.parent.mkdir(parents=True)
    headroom.tune(tmp_path, "agent_loop", "llmd_default:view=events", tmp_path)
    assert ran[1][3:] == [f"resume={file.parent}"]
    file.write_text("name: llmd_default\n", encoding="utf-8")
    headroom.tune(tmp_path, "agent_loop", "llmd_default:view=events", tmp_path)
    assert len(ran) == 2
