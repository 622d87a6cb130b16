"""The blocks of prompts that a router sent to each replica, the least recently sent forgotten."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class SentBlocks:
    """An index of blocks by replica, of whose evictions nobody tells.

    Blocks go by names: equal names are equal tokens after equal tokens.

    Args:
        n_replicas: that blocks are sent to.
        most: how many blocks are kept of each.
    """

    def __init__(self, n_replicas: int, most: int) -> None:
        self._most = most
        self._sent: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(n_replicas)]
        """Of each replica the names, the least recently sent first."""
        self._holders: dict[int, int] = {}
        """Name to the replicas that it was sent to, a bit each."""

    def send(self, replica: int, names: Sequence[int]) -> None:
        """Makes the leading blocks of a prompt the youngest, its first block most of all."""
        sent, bit = self._sent[replica], 1 << replica
        for name in reversed(names[: self._most]):
            if name in sent:
                sent.move_to_end(name)
            else:
                sent[name] = None
                self._holders[name] = self._holders.get(name, 0) | bit
        while len(sent) > self._most:
            name, _ = sent.popitem(last=False)
            others = self._holders[name] ^ bit
            if others:
                self._holders[name] = others
            else:
                del self._holders[name]

    def leading(self, names: Iterable[int]) -> list[int]:
        """Returns how many leading blocks of a prompt are known of each replica.

        Args:
            names: of its blocks; no further than any replica knows them are they looked at.
        """
        known = [0] * len(self._sent)
        left, blocks = (1 << len(known)) - 1, 0
        for name in names:
            here = left & self._holders.get(name, 0)
            _note(known, left ^ here, blocks)
            left = here
            if not left:
                return known
            blocks += 1
        _note(known, left, blocks)
        return known

    def count(self, replica: int) -> int:
        """Returns how many blocks are kept of a replica."""
        return len(self._sent[replica])


def _note(known: list[int], replicas: int, blocks: int) -> None:
    """Writes a number of blocks for each replica whose bit is set."""
    while replicas:
        lowest = replicas & -replicas
        known[lowest.bit_length() - 1] = blocks
        replicas ^= lowest
