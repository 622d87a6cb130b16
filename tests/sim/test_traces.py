"""Trace files: every format read exactly, every bad row and file named in one sentence."""

import gzip
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.sim.arrivals import PoissonArrivals
from llmroute_gym.sim.sources import TraceWorkload
from llmroute_gym.sim.traces import load_trace
from llmroute_gym.sim.workload import Workload

VIDUR_HEADER = "arrived_at,num_prefill_tokens,num_decode_tokens"
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
BURSTGPT_HEADER = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
MOONCAKE_ROW = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}

BAILIAN_ROW = {
    "chat_id": 159,
    "parent_chat_id": -1,
    "timestamp": 61.114,
    "input_length": 521,
    "output_length": 132,
    "type": "text",
    "turn": 1,
    "hash_ids": list(range(33)),
}

# The same three requests in every format: at 0, 4.314579 and 5 s.
SAME = {
    "vidur": f"{VIDUR_HEADER}\n0.0,374,44\n4.314579,396,109\n5,879,55\n",
    "vidur_with_more_columns": (
        "arrived_at,pd_ratio,num_decode_tokens,num_prefill_tokens\n"
        "0.0,8.5,44,374\n4.314579,3.6,109,396\n5.0,16,55,879\n"
    ),
    "azure": (
        f"{AZURE_HEADER}\n2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:51.6805900,879,55\n"
    ),
    "azure_2024": (
        f"{AZURE_HEADER}\n2024-05-10 23:59:58.000000+00:00,374,44\n"
        "2024-05-11 00:00:02.314579+00:00,396,109\n2024-05-11 00:00:03+00:00,879,55\n"
    ),
    "burstgpt": (
        f"{BURSTGPT_HEADER}\n0,ChatGPT,374,44,418,Conversation log\n"
        "4.314579,GPT-4,396,109,505,API log\n5,ChatGPT,879,55,934,API log\n"
    ),
    "burstgpt_2": (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
        "Log Type\n0.0,1722ac82,43,GPT-4,374,44,418,Conversation log\n"
        '4.314579,,2,"GPT-4, long",396,109,505,API log\n5.0,x,2,ChatGPT,879,55,934,API log\n'
    ),
    "splitwise_sim": (
        "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,"
        "token_size\n0,2,0,0.0,1,374,44\n1,2,0,4.314579,1,396,109\n2,2,0,5.0,1,879,55\n"
    ),
    "mooncake": (
        '{"timestamp": 0, "input_length": 374, "output_length": 44}\n'
        '{"timestamp": 4314.579, "input_length": 396, "output_length": 109}\n\n'
        '{"timestamp": 5000, "input_length": 879, "output_length": 55, "chat_id": 7}\n'
    ),
    "bailian": (
        '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 374, '
        '"output_length": 44, "type": "text", "turn": 1}\n'
        '{"chat_id": 2, "parent_chat_id": 1, "timestamp": 4.314579, "input_length": 396, '
        '"output_length": 109, "type": "text", "turn": 2}\n'
        '{"chat_id": 3, "parent_chat_id": -1, "timestamp": 5.0, "input_length": 879, '
        '"output_length": 55, "type": "text", "turn": 1}\n'
    ),
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write_file(content: str | bytes, name: str = "trace.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


Write = Callable[[str | bytes], Path]


def rows(count: int) -> str:
    return "".join(f"{i},{i + 1},{2 * i + 1}\n" for i in range(count))


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("packed", [False, True])
def test_formats_give_the_same_workload(name: str, packed: bool, write: Write) -> None:
    content = SAME[name].encode()
    read = load_trace(write(gzip.compress(content) if packed else content))
    assert read.arrived_at_s.tolist() == [0.0, 4.314579, 5.0]
    assert read.prompt_tokens.tolist() == [374, 396, 879]
    assert read.output_tokens.tolist() == [44, 109, 55]
    assert read.content is None


@pytest.mark.parametrize("change", ["\r\n", "bom", "spaces", "blank lines", "no last newline"])
def test_harmless_variants(change: str, write: Write) -> None:
    content = SAME["vidur"]
    content = {
        "\r\n": content.replace("\n", "\r\n"),
        "bom": "\ufeff" + content,
        "spaces": content.replace(",", " , "),
        "blank lines": content.replace("\n", "\n\n"),
        "no last newline": content.rstrip("\n"),
    }[change]
    read = load_trace(write(content))
    assert read.arrived_at_s.tolist() == [0.0, 4.314579, 5.0]
    assert read.prompt_tokens.tolist() == [374, 396, 879]


def test_first_kept_arrival_is_time_zero(write: Write) -> None:
    path = write(f"{VIDUR_HEADER}\n10,1,1\n12.5,2,2\n16,3,3\n")
    assert load_trace(path).arrived_at_s.tolist() == [0.0, 2.5, 6.0]
    assert load_trace(path, start=1).arrived_at_s.tolist() == [0.0, 3.5]
    assert load_trace(path, rebase=False).arrived_at_s.tolist() == [10.0, 12.5, 16.0]


def test_start_and_limit_cut_rows_in_file_order(write: Write) -> None:
    path = write(f"{VIDUR_HEADER}\n{rows(20)}")
    part = load_trace(path, start=5, limit=3)
    assert part.prompt_tokens.tolist() == [6, 7, 8]
    assert part.arrived_at_s.tolist() == [0.0, 1.0, 2.0]
    assert len(load_trace(path, start=19)) == 1


def test_rows_outside_the_cut_are_not_judged(write: Write) -> None:
    path = write(f"{VIDUR_HEADER}\nbad,1,1\n1,1,1\n2,2,2\n3,nan,2\n")
    assert len(load_trace(path, start=1, limit=2)) == 2


def test_start_beyond_the_file(write: Write) -> None:
    path = write(f"{VIDUR_HEADER}\n{rows(20)}")
    with pytest.raises(InputError, match=r"start=20 is beyond the 20 rows of .*trace\.csv"):
        load_trace(path, start=20)


def test_limit_beyond_the_file_warns(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write(f"{VIDUR_HEADER}\n{rows(20)}")
    assert len(load_trace(path, start=5, limit=20)) == 15
    assert "limit=20 asks for more rows than the 15" in caplog.text


def test_qps_rescales_after_the_cut(write: Write) -> None:
    path = write(f"{VIDUR_HEADER}\n{rows(20)}")
    read = load_trace(path, limit=11, qps=4.0)
    assert read.qps == pytest.approx(4.0)
    assert read.arrived_at_s[-1] == pytest.approx(2.5)
    with pytest.raises(InputError, match="at least two distinct arrival times"):
        load_trace(path, limit=1, qps=4.0)


def test_long_prompts_are_cut_and_reported(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    lines = [MOONCAKE_ROW, {**MOONCAKE_ROW, "input_length": 1500, "hash_ids": [0, 2, 3]}]
    path = write("\n".join(map(json.dumps, lines)))
    read = load_trace(path, max_prompt_tokens=1024)
    assert read.prompt_tokens.tolist() == [600, 1024]
    assert read.content is not None
    assert read.content.rows() == [[(0, 512), (1, 88)], [(0, 512), (2, 512)]]
    assert "cut 1 of 2 prompts" in caplog.text
    caplog.clear()
    load_trace(path, max_prompt_tokens=1500)
    assert not caplog.records


def test_unsorted_rows_are_sorted_and_reported(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    read = load_trace(write(f"{VIDUR_HEADER}\n5,1,1\n3,2,2\n5,3,3\n4,4,4\n"))
    assert read.arrived_at_s.tolist() == [0.0, 1.0, 2.0, 2.0]
    assert read.prompt_tokens.tolist() == [2, 4, 1, 3]
    assert "2 arrivals in" in caplog.text


BAD_TIMES = ["", "abc", "nan", "inf", "-1", "1_0", "2023-11-16 18:15:46.68"]
BAD_TOKENS = ["", "abc", "nan", "inf", "-5", "0", "12.5", "1_0", "2147483648", "1e30", "٣", "0x10"]
BAD_DATES = [
    "",
    "5.0",
    "2023-11-16",
    "2023-13-16 18:15:46.68",
    "2023-11-16 25:15:46",
    "16/11/2023 18:15",
    "2023-11-16 18:15:46,5",
]


def assert_bad_row(path: Path, line: int, *words: str) -> None:
    """The row is refused with file, line and these words; skipping leaves the others."""
    with pytest.raises(InputError) as caught:
        load_trace(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: ")
    assert message.endswith("; mend the row or use on_error='skip'")
    assert "\n" not in message
    for word in words:
        assert word in message
    read = load_trace(path, on_error="skip")
    assert len(read) == 2
    assert read.prompt_tokens.tolist() == [600, 700]


@pytest.mark.parametrize("text", BAD_TIMES)
def test_bad_times(text: str, write: Write) -> None:
    path = write(f"{VIDUR_HEADER}\n0,600,1\n{text},5,5\n1,700,1\n")
    assert_bad_row(path, 3, "arrived_at is ", text, "expected finite seconds >= 0")


@pytest.mark.parametrize("text", BAD_TOKENS)
@pytest.mark.parametrize("column", ["num_prefill_tokens", "num_decode_tokens"])
def test_bad_tokens(text: str, column: str, write: Write) -> None:
    bad = f"0.5,{text},5" if column == "num_prefill_tokens" else f"0.5,5,{text}"
    path = write(f"{VIDUR_HEADER}\n0,600,1\n{bad}\n1,700,1\n")
    assert_bad_row(path, 3, f"{column} is ", "expected an integer from 1 to 2147483647")


@pytest.mark.parametrize("text", BAD_DATES)
def test_bad_dates(text: str, write: Write) -> None:
    good = "2023-11-16 18:15:46.68"
    path = write(f'{AZURE_HEADER}\n{good},600,1\n"{text}",5,5\n{good},700,1\n')
    assert_bad_row(path, 3, f"TIMESTAMP is {text!r}", "expected a date and time such as 2023")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0.5,5", "has 2 fields, expected 3"),
        ("0.5,5,5,5", "has 4 fields, expected 3"),
        ("0.5;5;5", "has 1 fields, expected 3"),
        ('0.5,"1,155",5', "num_prefill_tokens is '1,155'"),
        ("0.5,\x00,5", "num_prefill_tokens is '\\x00'"),
        ("0.5," + "9" * 5000 + ",5", "num_prefill_tokens is"),
        ("0.5," + "x" * 500 + ",5", "xxx..."),
    ],
)
def test_bad_row_shapes(row: str, words: str, write: Write) -> None:
    assert_bad_row(write(f"{VIDUR_HEADER}\n0,600,1\n{row}\n1,700,1\n"), 3, words)


def test_burstgpt_failures_are_bad_rows(write: Write) -> None:
    path = write(
        f"{BURSTGPT_HEADER}\n5,ChatGPT,600,18,618,API log\n45,ChatGPT,1087,0,1087,API log\n"
        "118,GPT-4,700,276,976,API log\n"
    )
    assert_bad_row(path, 3, "Response tokens is 0, which marks a failed request")


def changed(**values: object) -> str:
    return json.dumps({**MOONCAKE_ROW, **values})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('["a"]', "is not a JSON object"),
        ('{"timestamp": 0, "output_length": 5}', "lacks input_length"),
        (changed(timestamp=-1), "timestamp is -1, expected finite milliseconds >= 0"),
        (changed(timestamp="0"), "timestamp is '0'"),
        (changed(timestamp=True), "timestamp is True"),
        (changed(timestamp=float("nan")), "timestamp is nan"),
        (changed(input_length=12.5), "input_length is 12.5"),
        (changed(input_length=None), "input_length is None"),
        (changed(output_length=0), "output_length is 0"),
        (changed(output_length=[1]), "output_length is [1]"),
        (changed(hash_ids="0"), "hash_ids is '0', expected a list of 64-bit integers"),
        (changed(hash_ids=[0, 1.5]), "hash_ids is [0, 1.5]"),
        (changed(hash_ids=[2**64]), "hash_ids is"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 5}', "lacks hash_ids unlike"),
    ],
)
def test_bad_mooncake_rows(row: str, words: str, write: Write) -> None:
    path = write("\n".join([changed(), row, changed(input_length=700)]))
    assert_bad_row(path, 2, words)


def json_lines(*lines: dict[str, object]) -> str:
    return "\n".join(map(json.dumps, lines))


def chat(chat_id: object, parent: object, **values: object) -> dict[str, object]:
    return {**BAILIAN_ROW, "chat_id": chat_id, "parent_chat_id": parent, **values}


def test_a_bailian_trace_is_in_seconds_with_blocks_of_16_tokens(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [chat(1, -1), chat(2, -1, timestamp=62.5, input_length=32, hash_ids=[0, 40])]
    read = load_trace(write(json_lines(*lines)))
    assert read.arrived_at_s.tolist() == [0.0, 62.5 - 61.114]
    assert read.content is not None
    assert read.content.rows() == [
        [*((block, 16) for block in range(32)), (32, 9)],
        [(0, 16), (40, 16)],
    ]
    assert not caplog.records
    cut = load_trace(write(json_lines(*lines)), max_prompt_tokens=40)
    assert cut.content is not None
    assert cut.content.rows() == [[(0, 16), (1, 16), (2, 8)], [(0, 16), (40, 16)]]


def test_the_session_of_a_bailian_request_is_the_root_of_its_chat(write: Write) -> None:
    lines = [chat(5, -1), chat(6, 5), chat(9, -1), chat(7, 6), chat(8, 3), chat(4, 3)]
    read = load_trace(write(json_lines(*lines)))
    assert read.session is not None
    assert read.session.tolist() == [5, 5, 9, 5, 3, 3]  # 3 came before the trace began


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (chat(2, -1, timestamp="61"), "timestamp is '61', expected finite seconds >= 0"),
        ({**MOONCAKE_ROW}, "lacks chat_id, parent_chat_id, turn"),
        (chat("a", -1), "chat_id is 'a', expected a 64-bit integer"),
        (chat(2, None), "parent_chat_id is None, expected a 64-bit integer"),
    ],
)
def test_bad_bailian_rows(row: dict[str, object], words: str, write: Write) -> None:
    good = [chat(1, -1, input_length=600), chat(3, -1, input_length=700)]
    assert_bad_row(write(json_lines(good[0], row, good[1])), 2, words)


def mooncake(n: int, gap: float, **values: object) -> str:
    return json_lines(*({**MOONCAKE_ROW, "timestamp": gap * i, **values} for i in range(n)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (mooncake(3, 250.5), ["milliseconds", "3.99 requests/s", "are fractions", "0.00399 "]),
        (
            mooncake(3, 200, input_length=20),
            ["milliseconds, which gives 5 requests/s", "of 16-token blocks; as seconds they"],
        ),
        (mooncake(20, 0), []),
        (
            json_lines(*({**MOONCAKE_ROW, "timestamp": i // 4} for i in range(41))),
            ["4e+03 requests/s, but that is a lot; as seconds they give 4 requests/s"],
        ),
        (mooncake(20, 3e5), ["0.00333 requests/s", "very little; as microseconds they give 3.33"]),
        (f"{VIDUR_HEADER}\n" + "".join(f"{250 * i},9,9\n" for i in range(20)), ["milliseconds"]),
        (f"{VIDUR_HEADER}\n" + "".join(f"{250 * i},9,9\n" for i in range(5)), []),
        (f"{VIDUR_HEADER}\n" + "".join(f"{i / 1e4},9,9\n" for i in range(20)), []),
        (mooncake(20, 250), []),
        (json_lines(*(chat(i, -1, timestamp=i / 4) for i in range(20))), []),
    ],
)
def test_a_doubtful_unit_is_told(
    content: str, words: list[str], write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    load_trace(write(content))
    assert len(caplog.records) == (1 if words else 0)
    assert all(word in caplog.text for word in words)


def test_the_unit_does_not_matter_to_a_rescaled_trace(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_trace(write(mooncake(3, 250.5)), qps=2.0).arrived_at_s.tolist() == [0.0, 0.5, 1.0]
    assert not caplog.records


def test_hashes_that_fit_no_block_are_left_out(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    read = load_trace(write(json_lines(MOONCAKE_ROW, {**MOONCAKE_ROW, "hash_ids": [0, 1, 2]})))
    assert read.content is None
    assert (
        "fit blocks of no size, such as 3 of them for input_length 600, which is 2" in caplog.text
    )


@pytest.mark.parametrize(
    ("content", "column"),
    [
        ("num_prefill_tokens,num_decode_tokens\n374,44\n396,109\n", "arrived_at"),
        ("ContextTokens,GeneratedTokens,TIME\n374,44,x\n396,109,x\n", "TIMESTAMP"),
    ],
)
def test_a_file_of_lengths_serves_where_times_are_drawn(
    content: str, column: str, write: Write
) -> None:
    path = write(content)
    read = load_trace(path, need_times=False)
    assert read.arrived_at_s.tolist() == [0.0, 0.0]
    assert read.prompt_tokens.tolist() == [374, 396]
    drawn = TraceWorkload(read, 2.0, PoissonArrivals()).sample(2, np.random.default_rng(0))
    assert drawn.output_tokens.tolist() == [44, 109]
    assert drawn.arrived_at_s[1] > drawn.arrived_at_s[0] > 0
    for options in ({}, {"need_times": False, "qps": 2.0}):
        with pytest.raises(InputError, match=f"has no arrival times .no column {column}") as error:
            load_trace(path, **options)  # type: ignore[arg-type]
        assert "choose workload/arrivals=poisson" in error.value.command_sentence
        assert "need_times" not in error.value.command_sentence


def test_skipped_rows_are_counted(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write(f"{VIDUR_HEADER}\n0,1,1\n1,0,1\n2,2,2\n3,3\n")
    with caplog.at_level(logging.WARNING):
        assert len(load_trace(path, on_error="skip")) == 2
    assert "skipped 2 of 4 rows; the first: " in caplog.text
    assert "line 3: num_prefill_tokens is 0" in caplog.text
    with pytest.raises(InputError, match=r"has no usable row among 1; the first: .*line 3"):
        load_trace(path, on_error="skip", start=1, limit=1)


UTF16 = SAME["vidur"].encode("utf-16")
LATIN1 = SAME["burstgpt"].replace("ChatGPT", "Chaté").encode("latin-1")
PACKED = gzip.compress(f"{VIDUR_HEADER}\n{rows(600)}".encode(), mtime=0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty; expected a trace with a header line"),
        (b"\n\n", "is empty"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (VIDUR_HEADER.encode(), "has a header but no rows"),
        (b"0.0,374,44\n1.0,3,4\n", "unknown header '0.0,374,44'; known formats are Vidur: arr"),
        (b"time,prompt,output\n1,2,3\n", "Mooncake: JSON lines with timestamp"),
        (b"x" * 5000 + b"\n1\n", r"unknown header 'x+\.\.\.'"),
        (b"arrived_at,num_prefill_tokens\n0,1\n", "Vidur trace but lacks .* num_decode_tokens"),
        (b"TIMESTAMP,GeneratedTokens\n0,1\n", "Azure trace but lacks .* ContextTokens"),
        (f"arrived_at,{VIDUR_HEADER}\n0,0,1,1\n".encode(), "more than one column 'arrived_at'"),
        (b'[{"timestamp": 0}]', "unknown header"),
        (UTF16, r"is not UTF-8 text \(byte 0xff: invalid start byte\)"),
        (LATIN1, r"is not UTF-8 text \(byte 0xe9"),
        (bytes(range(256)) * 20, "is not UTF-8 text"),
        (b"\x00\x01\x02\n" * 50, "is binary"),
        (PACKED[:-40], "ends in the middle of its gzip stream; download or copy it again"),
        (PACKED[:30] + b"\xff" * 20 + PACKED[50:], "is a damaged gzip file"),
        (PACKED[:-8] + b"12345678", "is a damaged gzip file"),
        (f'{VIDUR_HEADER}\n0,"1,1\n'.encode(), "is not well-formed CSV"),
        (f'{VIDUR_HEADER}\n0,"1"2,1\n'.encode(), "is not well-formed CSV"),
        (f'{VIDUR_HEADER}\n0,"'.encode() + b"1\n" * 100_000, "is not well-formed CSV"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_bad_files(content: bytes, expected: str, on_error: str, write: Write) -> None:
    path = write(content)
    with pytest.raises(InputError, match=expected) as caught:
        load_trace(path, on_error=on_error)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*absent\.csv"):
        load_trace(tmp_path / "absent.csv")
    with pytest.raises(InputError, match=r"is a folder; expected a trace file"):
        load_trace(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot read .* Not a directory"):
        load_trace(tmp_path / "file" / "trace.csv")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"limit": 0}, "limit must be an integer >= 1, got 0"),
        ({"limit": 2.5}, "limit must be .* got 2.5"),
        ({"start": -1}, "start must be an integer >= 0, got -1"),
        ({"qps": 0}, "qps must be a finite number > 0, got 0"),
        ({"qps": float("nan")}, "qps must be"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens must be an integer >= 1, got 0"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', got 'ignore'"),
    ],
)
def test_bad_arguments(options: dict[str, object], expected: str, write: Write) -> None:
    with pytest.raises(InputError, match=expected):
        load_trace(write(SAME["vidur"]), **options)  # type: ignore[arg-type]


def test_azure_trace(tmp_path: Path, data: Path) -> None:
    trace = data / "traces" / "azure_conv_2023.csv"
    began = time.perf_counter()
    read = load_trace(trace)
    assert time.perf_counter() - began < 3.0  # 0.08 s on the development machine
    assert len(read) == 19_366
    assert read.qps == pytest.approx(5.53, abs=0.005)
    expected = np.loadtxt(trace, delimiter=",", skiprows=1)
    assert (read.arrived_at_s == expected[:, 0]).all()
    assert (read.prompt_tokens == expected[:, 1]).all()
    assert (read.output_tokens == expected[:, 2]).all()
    read.to_csv(tmp_path / "copy.csv")
    assert (load_trace(tmp_path / "copy.csv").arrived_at_s == read.arrived_at_s).all()
    part = load_trace(trace, qps=2.5, start=9683, limit=5000)
    assert part.qps == pytest.approx(2.5)
    assert (part.prompt_tokens == expected[9683:14683, 1]).all()


def test_mooncake_trace(data: Path) -> None:
    read = load_trace(data / "traces" / "mooncake_conversation.jsonl")
    assert len(read) == 12_031
    assert read.prompt_tokens.mean() == pytest.approx(12_035, abs=1)
    assert read.qps == pytest.approx(3.4, abs=0.01)
    assert read.content is not None
    assert (np.diff(read.content.offsets) == np.ceil(read.prompt_tokens / 512)).all()
    hashes = read.content.streams
    assert 1 - np.unique(hashes).size / hashes.size == pytest.approx(0.366, abs=0.001)


def test_a_hundred_thousand_rows_are_read_exactly_and_soon(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times_s = np.cumsum(rng.exponential(size=100_000))
    original = Workload(times_s, rng.integers(1, 5000, 100_000), rng.integers(1, 900, 100_000))
    original.to_csv(tmp_path / "trace.csv")
    began = time.perf_counter()
    read = load_trace(tmp_path / "trace.csv", rebase=False)
    assert time.perf_counter() - began < 5.0
    assert (read.arrived_at_s == original.arrived_at_s).all()
