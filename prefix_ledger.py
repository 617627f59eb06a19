"""Which beginnings of prompts a cache of blocks holds: OpenVINO GenAI reuses them, but does not tell.

Knows token ids and the rule by which blocks are kept and found again. Refuses to know what is in them.
"""

from collections.abc import Iterator, Sequence


class PrefixLedger:
    """The books of such a cache.

    The cache keeps blocks of tokens, each named by its own and all before it, and forgets the block that has
    been of no use for the longest time. So does this. What it counts is there at least.

    Args:
        block: tokens in a block.
        blocks: how many the cache has.
    """

    def __init__(self, block: int, blocks: int):
        self._block = block
        self._blocks = blocks
        self._held: dict[int, None] = {}  # in the order of their last use

    def _names(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        name = 0
        for start in range(0, len(ids), self._block):
            end = min(start + self._block, len(ids))
            name = hash((name, *ids[start:end]))
            yield name, end

    def reused(self, ids: Sequence[int]) -> int:
        """How many tokens of a prompt need not be computed.

        Never all: the logits of the last one are wanted.
        """
        before = length = 0
        for name, end in self._names(ids):
            if name not in self._held:
                ends = range(length + 1, end)  # a reply may have ended in the middle of a block
                length = next((e for e in ends if hash((before, *ids[length:e])) in self._held), length)
                break
            self._use(name)
            before, length = name, end
        return min(length, len(ids) - 1)

    def store(self, ids: Sequence[int], grown_from: int = 0) -> None:
        """Note that `ids` are in the cache, of which the first `grown_from` were noted before."""
        if grown_from % self._block and grown_from < len(ids):
            *_, (name, _) = self._names(ids[:grown_from])
            self._held.pop(name, None)  # that block has got more tokens, and another name
        for name, _ in self._names(ids):
            self._use(name)
        while len(self._held) > self._blocks:
            del self._held[next(iter(self._held))]

    def _use(self, name: int) -> None:
        self._held.pop(name, None)
        self._held[name] = None
