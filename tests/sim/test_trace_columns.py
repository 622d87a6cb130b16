"""Reading by columns gives what reading by rows gives: arrays, warnings and errors."""

import gzip
import itertools
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.sim import trace_columns, traces
from llmroute_gym.sim.traces import load_trace
from llmroute_gym.sim.workload import Workload
from tests.sim.strategies import n_cases

VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def mooncake(time: object, prompt: int, hashes: list[int] | None, **more: object) -> dict[str, Any]:
    row = {"timestamp": time, "input_length": prompt, "output_length": 5, **more}
    return row if hashes is None else {**row, "hash_ids": hashes}


def chat(time: float, chat_id: int, parent: int, prompt: int) -> dict[str, Any]:
    own = {"chat_id": chat_id, "parent_chat_id": parent, "turn": 1, "type": "text"}
    return mooncake(time, prompt, list(range(-(-prompt // 16))), **own)


def segments(time: float, prompt: int, pairs: list[list[int]] | None) -> dict[str, Any]:
    row = {"arrived_at_s": time, "input_length": prompt, "output_length": 5}
    return row if pairs is None else {**row, "segments": pairs}


GOOD = {
    "vidur": VIDUR + "0.0,374,44\n4.314579,396,109\n5,879,55\n7e0,1,2147483647\n",
    "vidur with more columns": (
        "num_decode_tokens,x,num_prefill_tokens,arrived_at\n4,é,5,.5\n6,,7,1.\n"
    ),
    "windows lines": (VIDUR + "0.5,374,44\n4.5,396,109\n").replace("\n", "\r\n"),
    "byte order mark": "\ufeff" + VIDUR + "0.5,374,44\n",
    "spaces": (VIDUR + "0.5,374,44\n4.5,396,109\n").replace(",", " , "),
    "blank lines": "\n\n" + VIDUR + "\n0.5,374,44\n\n\n4.5,396,109\n\n",
    "no last newline": VIDUR + "0.5,374,44\n4.5,396,109",
    "lengths as floats": VIDUR + "0.5,374.0,44\n4.5,396,109.0\n1e3,1e3,7\n",
    "lengths only": "ContextTokens,GeneratedTokens\n5,6\n7,8\n",
    "out of order": VIDUR + "5,1,1\n3,2,2\n5,3,3\n4,4,4\n",
    "azure": AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
    "azure 2024": AZURE + "2024-05-10 23:59:58.000000+00:00,374,44\n2024-05-11T00:00:03Z,3,1\n",
    "azure elsewhere": AZURE + "2024-05-10 23:59:58-0130,374,44\n2024-05-11 00:00:03+01:00,3,1\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Log Type\n5,GPT-4,18,3,API log\n",
    "splitwise-sim": "request_id,arrival_timestamp,prompt_size,token_size\n0,1.5,374,44\n",
    "mooncake": lines(mooncake(0, 600, [0, 1]), mooncake(9, 1024, [0, 7]), mooncake(9, 5, [2**62])),
    "mooncake without hashes": lines(mooncake(0, 600, None), mooncake(0.25, 600, None)),
    "mooncake with more keys": lines(mooncake(0, 600, [0, 1], a="é", b=None, c=-1.5e-7, d=True)),
    "wrong blocks": lines(mooncake(0, 600, [0, 1, 2]), mooncake(1, 600, [0, 3])),
    "blocks of 64": lines(mooncake(0, 600, list(range(10))), mooncake(1, 64, [0])),
    "bailian": lines(chat(61.114, 5, -1, 40), chat(62.5, 6, 5, 16), chat(70.0, 7, 6, 1)),
    "segments": lines(
        segments(0.1, 20, [[0, 20]]),
        segments(0.2, 45, [[0, 20], [-1, 5], [1, 20]]),
        segments(0.3, 7, []),
        segments(0.4, 9, [[7, 3], [-2, 4], [-3, 2]]),
    ),
    "arrived_at_s with hashes": lines({**segments(0.1, 600, None), "hash_ids": [3, -4]}),
    "arrived_at_s alone": lines(segments(0.1, 600, None), segments(0.25, 7, None)),
}
ODD = {
    "quotes": VIDUR + '0.5,"374",44\n4.5,396,109\n',
    "plus": VIDUR + "+0.5,+374,44\n4.5,396,109\n",
    "zones on some": AZURE + "2024-05-10 23:59:58+00:00,374,44\n2024-05-11 00:00:03,3,1\n",
    "spaces around dates": AZURE + "  2024-05-10 23:59:58 ,374,44\n",
    "old lines": (VIDUR + "0.5,374,44\n4.5,396,109\n").replace("\n", "\r"),
    "blank lines of json": lines(mooncake(0, 600, [0, 1])) + "\n \n" + lines(mooncake(9, 4, [0])),
    "spaces before json": " " + lines(mooncake(0, 600, [0, 1])),
    "lengths as floats in json": lines(mooncake(0, 600.0, [0, 1])),
    "a time beyond 64 bits": lines(mooncake(2**70, 600, None), mooncake(0.5, 600, None)),
    "a key twice": '{"timestamp": 0, "timestamp": 1, "input_length": 3, "output_length": 4}\n',
    "objects within objects": lines(mooncake(0, 600, [0, 1], x={"timestamp": 1}, y=[2])),
    "other order of keys": lines(mooncake(0, 6, [0]), {"hash_ids": [3], **mooncake(1, 6, None)}),
    "01": lines(mooncake(0, 6, [7])).replace("[7]", "[7, 01]"),
}
BAD_TIMES = ["", "nan", "inf", "-1", "1_0", "0x10", "1e400", "٣", "x", "5 5"]
BAD_TOKENS = [*BAD_TIMES, "9" * 400, "2147483648", "0", "12.5"]
BAD = {
    **{f"time {text[:9]}": f"{VIDUR}0,1,1\n{text},5,5\n" for text in BAD_TIMES},
    **{f"tokens {text[:9]}": f"{VIDUR}0,1,1\n1,{text},5\n" for text in BAD_TOKENS},
    **{
        f"date {text}": f"{AZURE}2023-11-16 18:15:46.68,1,1\n{text},5,5\n"
        for text in (
            "2023-11-16",
            "2023-11-16 18:15",
            "2023-11-16 181546.123456",
            "2023-11-16 18:15:46+00",
            "2023-02-30 18:15:46",
            "2023-11-16 18:15:46.1234567890",
            "5.0",
        )
    },
    "all dates without minutes of the zone": f"{AZURE}2023-11-16 18:15:46+00,1,1\n",
    "few fields": VIDUR + "0,1,1\n1,2\n",
    "many fields": VIDUR + "0,1,1\n1,2,3,4\n",
    "blank field": VIDUR + "0,1,1\n   \n",
    "nul": VIDUR + "0,1,1\n1,\x00,3\n",
    "unclosed quote": VIDUR + '0,"1,1\n',
    "no rows": VIDUR,
    "unknown header": "a,b,c\n1,2,3\n",
    "twice": "arrived_at," + VIDUR + "0,0,1,1\n",
    "empty": "",
    "two objects in a line": lines(mooncake(0, 6, None)).rstrip() + lines(mooncake(1, 6, None)),
    "an object on two lines": '{"timestamp": 0,\n"input_length": 3, "output_length": 4}\n',
    "null in a line": lines(mooncake(0, 6, None)).rstrip() + " null\n",
    "no list": lines(mooncake(0, 6, None)).rstrip("}\n") + ', "hash_ids": null}\n',
    "null in a list": lines(mooncake(0, 600, [0])).replace("[0]", "[0, null]"),
    "hashes on some": lines(mooncake(0, 600, [0, 1]), mooncake(1, 600, None)),
    "a key less": lines(mooncake(0, 600, [0, 1]), {"timestamp": 5, "input_length": 3}),
    "text as number": lines(mooncake("0", 600, [0, 1])),
    "nan": lines(mooncake(float("nan"), 600, [0, 1])),
    "true": lines(mooncake(True, 600, [0, 1])),
    "a hash beyond 64 bits": lines(mooncake(0, 600, [0, 2**64])),
    "a chat that is text": lines(chat(1.0, 5, -1, 16), {**chat(2.0, 6, -1, 16), "chat_id": "6"}),
    "both contents": lines({**segments(0.1, 9, [[0, 9]]), "hash_ids": [0]}),
    "segments on some": lines(segments(0.1, 9, [[0, 9]]), segments(0.2, 9, None)),
    "segments that fall short": lines(segments(0.1, 9, [[0, 9]]), segments(0.2, 9, [[0, 8]])),
    "a segment of nothing": lines(segments(0.1, 9, [[0, 9], [1, 0]])),
    "a segment of three": lines(segments(0.1, 9, [[0, 9, 1]])),
    "segments of text": lines(segments(0.1, 9, "abc")),  # type: ignore[arg-type]
    "its own output": lines(segments(0.1, 9, [[0, 9]]), segments(0.2, 5, [[-2, 5]])),
    "an output to come": lines(segments(0.1, 5, [[-2, 5]]), segments(0.2, 9, [[0, 9]])),
    "more than the output": lines(segments(0.1, 9, [[0, 9]]), segments(0.2, 6, [[-1, 6]])),
    "an output too late": lines(segments(0.5, 9, [[0, 9]]), segments(0.2, 5, [[-1, 5]])),
}


def arrays(workload: Workload) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("arrived_at_s", "prompt_tokens", "output_tokens", "session"):
        column = getattr(workload, name)
        found[name] = None if column is None else (column.dtype, column.tolist())
    found["content"] = workload.content and workload.content.rows()
    return found


def outcome(path: Path, **options: Any) -> object:
    try:
        return arrays(load_trace(path, **options))
    except InputError as error:
        return str(error)


ByRows = Callable[..., tuple[object, list[str]]]


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> ByRows:
    """Returns what reading by rows alone gives, and what it logs."""

    def read(path: Path, **options: Any) -> tuple[object, list[str]]:
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(traces, "read_columns", lambda *_: None)
            found = outcome(path, **options)
        logged = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found, logged

    return read


OPTIONS: list[dict[str, Any]] = [
    {"need_times": False},
    {"need_times": False, "rebase": False},
    {"need_times": False, "start": 1},
    {"need_times": False, "limit": 1},
    {"need_times": False, "start": 1, "limit": 9},
    {"need_times": False, "on_error": "skip"},
    {"need_times": False, "max_prompt_tokens": 30},
    {"qps": 2.0},
]


@pytest.mark.parametrize("name", [*GOOD, *ODD, *BAD])
@pytest.mark.parametrize("chunk", [1 << 18, 16])
def test_both_ways_give_the_same(
    name: str,
    chunk: int,
    tmp_path: Path,
    by_rows: ByRows,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace_columns, "FIRST_BYTES", chunk)
    content = {**GOOD, **ODD, **BAD}[name].encode()
    for packed, options in itertools.product([False, True], OPTIONS):
        path = tmp_path / "trace"
        path.write_bytes(gzip.compress(content) if packed else content)
        expected, logged = by_rows(path, **options)
        assert outcome(path, **options) == expected
        assert [record.getMessage() for record in caplog.records] == logged


@pytest.mark.parametrize("name", GOOD)
def test_usual_files_are_read_by_columns(name: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(GOOD[name], encoding="utf-8")
    read = trace_columns.read_columns(path, 0, None)
    assert read is not None
    assert read[0].prompts.dtype == read[0].outputs.dtype == np.int64


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(BAD[name], encoding="utf-8")
    message = outcome(path)
    assert isinstance(message, str)
    assert str(path) in message
    assert "\n" not in message


BYTES = [b"", *(bytes([byte]) for byte in b'0-. \n\rexX_",[]{}:+Z\t\xff'), b"null", b"\xc3\xa9"]


@pytest.mark.parametrize("seed", range(n_cases(4)))
def test_damaged_files_give_the_same(
    seed: int, tmp_path: Path, by_rows: ByRows, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(seed)
    caplog.set_level(logging.ERROR)
    path = tmp_path / "trace"
    for name, content in GOOD.items():
        for _ in range(8):
            damaged = bytearray(content.encode())
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(damaged))
                damaged[at : at + rng.randint(0, 2)] = rng.choice(BYTES)
            path.write_bytes(damaged)
            options = {"on_error": rng.choice(["raise", "skip"]), "need_times": False}
            assert outcome(path, **options) == by_rows(path, **options)[0], (name, damaged)
