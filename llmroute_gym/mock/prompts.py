"""What a mock engine takes for tokens: equal pieces of bytes, and the words that it answers."""

import math
import random
from array import array
from collections.abc import Iterator, Sequence
from zlib import crc32

from llmroute_gym.sim.reference.block_names import BlockNames

WORDS = 4096
_SPREAD = 2_654_435_761


class Prompt(BlockNames):
    """A prompt's tokens and those of its answer, of which blocks are found again by their bytes.

    Args:
        content: all tokens in a row.
        token_bytes: of each token; the last one may be shorter.
        salt: prompts of different salts share nothing.

    Attributes:
        tokens: how many there are.
        answer: the tokens of the answer.
    """

    def __init__(self, content: bytes, token_bytes: int, salt: str = "") -> None:
        self.tokens = -(-len(content) // token_bytes)
        self.answer = Answer(crc32(content), token_bytes)
        self._content = content
        self._token_bytes = token_bytes
        self._salt = hash(salt)
        self._known: dict[int, list[int]] = {}

    @classmethod
    def of_ids(cls, ids: Sequence[int], salt: str = "") -> "Prompt":
        """Returns the prompt of numbered tokens, each 0 to 2**32 - 1.

        Raises:
            TypeError: one is no integer.
            OverflowError: one is out of range.
        """
        numbers = array("I", ids)
        return cls(numbers.tobytes(), numbers.itemsize, salt)

    @classmethod
    def of_texts(cls, texts: Sequence[bytes], token_bytes: int, salt: str = "") -> "Prompt":
        """Returns the prompt of texts that share no token, such as the messages of a chat."""
        padded = (text + bytes(-len(text) % token_bytes) for text in texts)
        return cls(b"".join(padded), token_bytes, salt)

    def leading(self, blocks: int, block_size: int) -> list[int]:
        """Returns the names of the leading blocks, so many at least; all of them full.

        Args:
            blocks: how many are needed.
            block_size: tokens per block.
        """
        known = self._known.setdefault(block_size, [])
        for block in range(len(known), blocks):
            before = known[-1] if known else self._salt
            known.append(hash((before, self._piece(block * block_size, block_size))))
        return known

    def _piece(self, start: int, tokens: int) -> bytes:
        """Returns the bytes of so many tokens, those of the answer where the prompt has ended."""
        wide, end = self._token_bytes, start + tokens
        piece = self._content[start * wide : end * wide]
        if end <= self.tokens:
            return piece
        words = (self.answer.token(at - self.tokens) for at in range(max(start, self.tokens), end))
        return piece + b"".join(words)


class Answer:
    """The words that follow a prompt: always the same, however many are asked for.

    Args:
        seed: of the words, any integer.
        token_bytes: of each word, the space before it included.
    """

    def __init__(self, seed: int, token_bytes: int) -> None:
        self._seed = seed
        self._words = _words(token_bytes)

    def token(self, index: int) -> bytes:
        """Returns a word by its place, from 0; it needs no escape in JSON."""
        return self._words[(self._seed + index) * _SPREAD >> 7 & WORDS - 1]

    def length(self, mean: float, seed: int) -> int:
        """Draws how many tokens come before the end, geometrically; the same for equal prompts.

        Args:
            mean: tokens, at least 1.
            seed: of the engine.
        """
        if mean == 1:
            return 1
        uniform = random.Random(self._seed << 32 ^ seed).random()
        return 1 + int(math.log1p(-uniform) / math.log1p(-1 / mean))


_known_words: dict[int, list[bytes]] = {}


def _words(token_bytes: int) -> list[bytes]:
    if token_bytes not in _known_words:
        _known_words[token_bytes] = list(_drawn_words(token_bytes))
    return _known_words[token_bytes]


def _drawn_words(token_bytes: int) -> Iterator[bytes]:
    draw = random.Random(token_bytes)
    for _ in range(WORDS):
        letters = bytes(draw.choices(b"abcdefghijklmnopqrstuvwxyz", k=token_bytes))
        yield b" " + letters[1:] if token_bytes > 1 else letters
