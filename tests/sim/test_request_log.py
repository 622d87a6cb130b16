"""The request log: what is written is read again, and what is wrong is named."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmroute_gym.errors import InputError
from llmroute_gym.sim.request_log import (
    LARGEST_SESSION,
    OUTCOMES,
    LoggedRequest,
    read_request_log,
)
from llmroute_gym.sim.traces import load_trace

ARRIVED_S = 1_790_000_000.25
SERVED = LoggedRequest(ARRIVED_S, "a", 374, 44, 128, ARRIVED_S + 0.5, ARRIVED_S + 2, "ok", 7)
WHOLE = LoggedRequest(ARRIVED_S - 1, "b", 396, 109, None, None, ARRIVED_S + 3, "ok")
TURNED_AWAY = LoggedRequest(ARRIVED_S, "", 50, 0, None, None, ARRIVED_S, "rejected")


def written(folder: Path, *requests: LoggedRequest) -> Path:
    log = folder / "requests.csv"
    log.write_text(LoggedRequest.header() + "".join(one.line() for one in requests))
    return log


def test_the_columns_are_a_contract() -> None:
    assert LoggedRequest.header() == (
        "arrived_at_s,backend,prompt_tokens,output_tokens,cached_tokens,first_token_at_s,"
        "ended_at_s,outcome,session\n"
    )
    assert SERVED.line() == (
        "1790000000.250000,a,374,44,128,1790000000.750000,1790000002.250000,ok,7\n"
    )
    assert TURNED_AWAY.line() == ("1790000000.250000,,50,0,,,1790000000.250000,rejected,\n")


@given(
    st.builds(
        lambda times, backend, tokens, cached, streamed, outcome, session: LoggedRequest(
            *(times[0], backend, *tokens, cached and min(cached, tokens[0])),
            *(times[1] if streamed else None, times[2], outcome, session),
        ),
        st.lists(st.integers(0, 2**52).map(lambda us: us / 1e6), min_size=3, max_size=3).map(
            sorted
        ),
        st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0")),
        st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)),
        st.none() | st.integers(0, 10**6),
        st.booleans(),
        st.sampled_from(sorted(OUTCOMES)),
        st.none() | st.integers(0, LARGEST_SESSION),
    )
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, logged: LoggedRequest
) -> None:
    read = read_request_log(written(tmp_path_factory.mktemp("log"), logged))[0]
    for kept, given_ in zip(read, logged, strict=True):
        assert kept == (pytest.approx(given_, abs=1e-6) if isinstance(given_, float) else given_)


def test_a_log_is_a_trace_of_what_was_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        workload = load_trace(written(tmp_path, SERVED, TURNED_AWAY, WHOLE))
    assert workload.arrived_at_s.tolist() == [0, 1]
    assert workload.prompt_tokens.tolist() == [396, 374]
    assert workload.output_tokens.tolist() == [109, 44]
    assert workload.session is not None
    assert workload.session.tolist() == [-1, 7]
    assert [record.message for record in caplog.records] == [
        f"left out 1 of 3 requests of {tmp_path / 'requests.csv'}, not served"
    ]


def test_a_log_of_failures_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no request among 2 that was served"):
        load_trace(written(tmp_path, TURNED_AWAY, TURNED_AWAY))


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("arrived_at_s", "soon", "arrived_at_s is 'soon', expected finite seconds >= 0"),
        ("ended_at_s", "nan", "ended_at_s is 'nan', expected finite seconds >= 0"),
        ("first_token_at_s", "5", "arrived_at_s .*, first_token_at_s 5 and ended_at_s "),
        ("prompt_tokens", "0", "prompt_tokens is 0.* expected an integer from 1"),
        ("output_tokens", "4.5", "output_tokens is '4.5', expected an integer from 1"),
        ("output_tokens", "²", "output_tokens is '²', expected an integer from 1"),
        ("cached_tokens", "375", "cached_tokens is 375, expected at most the 374 of the prompt"),
        ("outcome", "fine", "outcome is 'fine', expected one of ok, rejected"),
        ("session", "-1", "session is '-1', expected nothing or an integer from 0"),
        ("session", "9" * 5000, "session is '99.*expected nothing or an integer from 0"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, column: str, cell: str, words: str) -> None:
    cells = dict(zip(LoggedRequest._fields, SERVED.line().strip().split(","), strict=True))
    log = written(tmp_path, WHOLE)
    log.write_text(log.read_text() + ",".join((cells | {column: cell}).values()) + "\n")
    with pytest.raises(InputError, match=f"requests.csv, line 3: {words}"):
        read_request_log(log)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lacks the columns arrived_at_s, backend"),
        ("arrived_at_s,prompt_tokens,output_tokens\n0,1,1\n", "lacks the columns backend, cached"),
        (LoggedRequest.header(), "has no rows"),
        (LoggedRequest.header() + "1,a\n", "line 2: 2 values, expected 9"),
        ('"', "cannot read .*: unexpected end of data"),
        ("\xff", "cannot read .*expected the log of a gateway"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    log = tmp_path / "requests.csv"
    log.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=words):
        read_request_log(log)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_request_log(tmp_path / "none.csv")
