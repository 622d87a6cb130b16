"""What the prompts of a trace are made of, from its hashes or segments."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.sim.traces import load_trace
from llmroute_gym.sim.workload import Workload

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_lines(*rows: dict[str, Any]) -> Path:
        path = tmp_path / "trace.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write_lines


def row(time: float, prompt: int, output: int = 5, **content: object) -> dict[str, Any]:
    return {"arrived_at_s": time, "input_length": prompt, "output_length": output, **content}


def content(workload: Workload) -> list[list[tuple[int, int]]]:
    assert workload.content is not None
    return workload.content.rows()


def test_each_recorded_input_of_vllm_is_read(data: Path, tmp_path: Path) -> None:
    inputs = sorted((data / "vllm").glob("*/input.jsonl.gz"))
    assert len(inputs) == 33
    for file in inputs:
        rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
        config = json.loads((file.parent / "config.json").read_text())
        assert config.get("trace_block_size", 512) == 512
        plain = tmp_path / "input.jsonl"
        plain.write_bytes(gzip.decompress(file.read_bytes()))
        for path in (file, plain):
            read = load_trace(path, rebase=False)
            assert read.arrived_at_s.tolist() == [one["arrived_at_s"] for one in rows]
            assert read.prompt_tokens.tolist() == [one["input_length"] for one in rows]
            assert read.output_tokens.tolist() == [one["output_length"] for one in rows]
            if "segments" in rows[0]:
                assert content(read) == [list(map(tuple, one["segments"])) for one in rows]
            elif "hash_ids" in rows[0]:
                for one, pieces in zip(rows, content(read), strict=True):
                    last = one["input_length"] - 512 * (len(pieces) - 1)
                    assert pieces == [
                        *((block, 512) for block in one["hash_ids"][:-1]),
                        (one["hash_ids"][-1], last),
                    ]
            else:
                assert read.content is None
        assert load_trace(file).arrived_at_s[0] == 0.0


CHAT = (
    row(1.0, 8, segments=[[0, 8]]),
    row(2.0, 21, segments=[[0, 8], [-1, 5], [1, 8]]),
    row(3.0, 13, segments=[[0, 8], [-1, 5]]),
    row(4.0, 18, segments=[[0, 8], [-1, 5], [-2, 5]]),
)


def test_outputs_of_rows_that_are_left_out_stay_shared(write: Write) -> None:
    path = write(*CHAT)
    assert content(load_trace(path, start=1)) == [
        [(0, 8), (2, 5), (1, 8)],
        [(0, 8), (2, 5)],
        [(0, 8), (2, 5), (-1, 5)],
    ]
    bad = {**CHAT[1], "output_length": 0}
    skipped = load_trace(write(CHAT[0], bad, *CHAT[2:]), on_error="skip")
    assert content(skipped) == [[(0, 8)], [(0, 8), (-1, 5)], [(0, 8), (-1, 5), (2, 5)]]


def test_outputs_are_named_by_rows_also_where_those_are_out_of_order(write: Write) -> None:
    read = load_trace(write(CHAT[0], {**CHAT[3], "arrived_at_s": 0.5, "segments": []}, CHAT[2]))
    assert content(read) == [[], [(0, 8)], [(0, 8), (-2, 5)]]
    late = write({**CHAT[0], "arrived_at_s": 9.0}, *CHAT[1:])
    with pytest.raises(InputError, match=r"trace.jsonl is no workload: .* does not arrive earlier"):
        load_trace(late)


def test_long_prompts_are_cut_with_their_segments(write: Write) -> None:
    read = load_trace(write(*CHAT), max_prompt_tokens=10)
    assert content(read) == [[(0, 8)], *[[(0, 8), (-1, 2)]] * 3]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (row(5.0, 9, segments=[[0, 8]]), "have 8 tokens, expected them to add up to the input_len"),
        (row(5.0, 9, segments=[[0, 9, 1]]), "is [[0, 9, 1]], expected a list of [stream, tokens]"),
        (row(5.0, 9, segments=[[0, 9.0]]), "expected a list of [stream, tokens] pairs"),
        (row(5.0, 9, segments=[[0, 9], [1, 0]]), "tokens from 1 to 2147483647"),
        (row(5.0, 9, segments={}), "segments is {}, expected a list"),
        (
            row(5.0, 9, segments=[[-5, 9]]),
            "stream -5, the output of row 4 counted from 0, exp",
        ),
        (row(5.0, 9, segments=[[-1, 9]]), "9 tokens of stream -1, expected at most the output_len"),
        (row(5.0, 9), "lacks segments unlike the rows before"),
        (row(5.0, 9, hash_ids=[1]), "lacks segments unlike the rows before"),
        (row(5.0, 9, hash_ids=[1], segments=[]), "has both hash_ids and segments"),
    ],
)
def test_wrong_segments_are_named(wrong: dict[str, Any], words: str, write: Write) -> None:
    path = write(*CHAT, wrong)
    with pytest.raises(InputError) as caught:
        load_trace(path)
    assert str(caught.value).startswith(f"{path}, line 5: ")
    assert words in str(caught.value)
    assert content(load_trace(path, on_error="skip")) == content(load_trace(write(*CHAT)))


def test_hashes_of_blocks_of_another_size_are_read_as_such(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(row(0.0, 130, hash_ids=[0, 1, 2]), row(1.0, 64, hash_ids=[0]))
    assert content(load_trace(path)) == [[(0, 64), (1, 64), (2, 2)], [(0, 64)]]
    assert "do not fit blocks of 512 prompt tokens but those of 64, and are read as such" in (
        caplog.text
    )
