"""Completions of random tokens, asked for at random times, and when they were complete."""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from vllm_server import MODEL, VOCABULARY
from vllm_steps import request_id

MEAN_PROMPT, MEAN_OUTPUT = 200, 30
SPREAD = 0.6
"""Standard deviation of the logarithms of both."""
LONGEST_PROMPT, LONGEST_OUTPUT = 1000, 200
ANSWER_S = 600.0


class Wanted(NamedTuple):
    """A completion to be asked for."""

    number: int
    after_s: float
    """Since the first."""
    prompt: list[int]
    output_tokens: int


class Answered(NamedTuple):
    """When the client of a completion saw what, seconds since 1970."""

    sent_s: float
    first_s: float
    ended_s: float


def random_load(count: int, rate_rps: float, seed: int) -> list[Wanted]:
    """Returns completions with Poisson arrivals and log-normal sizes; no prompt is like another."""
    rng = np.random.default_rng(seed)
    after_s = np.cumsum(rng.exponential(1 / rate_rps, count)) if count else np.zeros(0)

    def sizes(mean: float, most: int) -> list[int]:
        drawn = rng.lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD, count)
        return [int(size) for size in np.clip(np.rint(drawn), 1, most)]

    prompts = sizes(MEAN_PROMPT, LONGEST_PROMPT)
    outputs = sizes(MEAN_OUTPUT, LONGEST_OUTPUT)
    return [
        Wanted(number, at_s, rng.integers(1, VOCABULARY, prompt).tolist(), output)
        for number, (at_s, prompt, output) in enumerate(
            zip((after_s - after_s[:1]).tolist(), prompts, outputs, strict=True)
        )
    ]


def request_bytes(wanted: Wanted) -> bytes:
    """Returns the HTTP request for a completion that streams and ends by its length alone."""
    fields = {
        "model": MODEL,
        "prompt": wanted.prompt,
        "max_tokens": wanted.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body = json.dumps(fields).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nX-Request-Id: {request_id(wanted.number)}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def ask(port: int, wanted: Wanted) -> Answered:
    """Has one completion streamed to its end.

    Raises:
        SystemExit: it is no complete answer.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        sent_s = time.time()
        writer.write(request_bytes(wanted))
        answer, first_s = b"", 0.0
        while not answer.endswith(b"0\r\n\r\n") and (piece := await reader.read(65536)):
            answer += piece
            if not first_s and b"\ndata: " in answer:
                first_s = time.time()
        ended_s = time.time()
    finally:
        writer.close()
    counted = rb'"completion_tokens": ?%d\b' % wanted.output_tokens
    if b"data: [DONE]" not in answer or not re.search(counted, answer):
        raise SystemExit(f"request {wanted.number} has no complete answer: {answer[-500:]!r}")
    return Answered(sent_s, first_s, ended_s)


async def send_all(port: int, load: list[Wanted]) -> Mapping[int, Answered]:
    """Sends requests at their times, however long answers take; returns what came by number."""
    began_s = asyncio.get_running_loop().time()

    async def one(wanted: Wanted) -> Answered:
        await asyncio.sleep(began_s + wanted.after_s - asyncio.get_running_loop().time())
        return await asyncio.wait_for(ask(port, wanted), ANSWER_S)

    answers = await asyncio.gather(*map(one, load))
    return {wanted.number: answer for wanted, answer in zip(load, answers, strict=True)}
