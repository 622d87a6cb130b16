"""What prompts may have in common, guessed from how much of each was found in a prefix cache."""

from collections import defaultdict, deque
from collections.abc import Sequence

from llmroute_gym.sim.content import Content
from llmroute_gym.sim.request_log import LoggedRequest

Row = list[tuple[int, int]]
"""The segments of a prompt: stream, tokens."""
RECENT = 256
"""Requests to a backend among which one is looked for that begins alike."""


def guessed_content(logged: Sequence[LoggedRequest]) -> tuple[Content, float]:
    """Returns prompts that a prefix cache finds as much of as it did.

    A prompt of which tokens were found begins like the latest earlier request to the same backend
    that is long enough: of its session, if that has one, else of any. With whom it had its
    beginning in common indeed, a log without words cannot tell.

    Args:
        logged: in order of arrival.

    Returns:
        The content of the prompts, and the share of the found tokens that have such a request.
    """
    rows: list[Row] = []
    recent: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=RECENT))
    in_session: dict[tuple[str, int], int] = {}
    wanted = explained = 0
    for index, one in enumerate(logged):
        found, row = one.cached_tokens or 0, Row()
        if found:
            session = None if one.session is None else in_session.get((one.backend, one.session))
            first = [] if session is None else [session]
            for earlier in (*first, *reversed(recent[one.backend])):
                if _known_tokens(logged[earlier], one) >= found:
                    row = _cut(
                        [*rows[earlier], (-(earlier + 1), logged[earlier].output_tokens)], found
                    )
                    explained += found
                    break
            wanted += found
        own = one.prompt_tokens - sum(tokens for _, tokens in row)
        rows.append([*row, (index, own)] if own else row)
        recent[one.backend].append(index)
        if one.session is not None:
            in_session[one.backend, one.session] = index
    return Content.of(rows), explained / max(wanted, 1)


def _known_tokens(earlier: LoggedRequest, one: LoggedRequest) -> int:
    """Returns how many tokens of an earlier request a later one may begin with."""
    ended = earlier.ended_at_s <= one.arrived_at_s
    return earlier.prompt_tokens + (earlier.output_tokens if ended else 0)


def _cut(row: Row, most: int) -> Row:
    """Returns the first tokens of a prompt."""
    kept = Row()
    for stream, tokens in row:
        if most <= 0:
            break
        kept.append((stream, min(tokens, most)))
        most -= tokens
    return kept
