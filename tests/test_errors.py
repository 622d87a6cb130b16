"""Wrong input is worded for where it came from: Python, or the command line."""

import pickle
from pathlib import Path

import pytest

from llmroute_gym import evaluate
from llmroute_gym.errors import InputError


def test_a_sentence_is_the_same_everywhere_unless_it_says_otherwise() -> None:
    assert InputError("no; do").command_sentence == str(InputError("no; do")) == "no; do"
    error = InputError("no; set a='b'", in_commands={"a='b'": "group.a=b"})
    assert str(error) == "no; set a='b'"
    assert error.command_sentence == "no; set group.a=b"
    assert pickle.loads(pickle.dumps(error)).command_sentence == "no; set group.a=b"


@pytest.mark.cli
@pytest.mark.parametrize(
    ("overrides", "mends"),
    [
        (
            ["cluster.num_blocks=40"],
            ["cluster.oversize=reject", "cluster.num_blocks=400"],
        ),
        (
            ["cluster.scheduler=prefill_first", "cluster.max_batched_tokens=1000"],
            ["cluster.max_batched_tokens=20000", "+workload.lengths.max_total_tokens=999"],
        ),
    ],
)
def test_every_mend_of_an_oversize_request_can_be_typed(
    overrides: list[str],
    mends: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def run(*words: str) -> None:
        folder = f"run_dir={tmp_path / str(len(list(tmp_path.iterdir())))}"
        given = [*overrides, "routers=[lor]", "runs=2", "requests=30", folder]
        monkeypatch.setattr("sys.argv", ["evaluate", *given, *words])
        evaluate.main()

    with pytest.raises(SystemExit) as refused:
        run()
    assert refused.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "oversize='reject'" not in sentence
    for mend in mends:
        assert mend.partition("=")[0] in sentence
        run(mend)
