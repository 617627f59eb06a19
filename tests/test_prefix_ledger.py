"""What the engine's cache is thought to hold of a prompt."""

import pytest

from prefix_ledger import PrefixLedger


@pytest.mark.parametrize(
    ("stored", "prompt", "reused"),
    [
        ([], range(10), 0),
        ([range(8)], range(10), 8),
        ([range(8)], range(8), 7),  # the last one's logits are wanted
        ([range(10)], range(12), 10),  # a reply ended within a block
        ([range(10)], [*range(9), 99, 98], 8),  # but it is no use where it goes on otherwise
        ([range(10)], [99, *range(10)], 0),
        ([range(4), range(50, 58)], range(10), 4),
        ([range(4), range(50, 62)], range(10), 0),  # forgotten: there is room for three blocks
    ],
)
def test_the_ledger_counts_whole_blocks_and_ends(stored, prompt, reused):
    ledger = PrefixLedger(block=4, blocks=3)
    for ids in stored:
        ledger.store(list(ids))
    assert ledger.reused(list(prompt)) == reused


def test_a_block_that_grows_is_no_longer_the_end_of_the_shorter_one():
    ledger = PrefixLedger(block=4, blocks=10)
    ledger.store(list(range(6)))
    assert ledger.reused([*range(6), 99]) == 6
    ledger.store(list(range(7)), grown_from=6)
    assert ledger.reused([*range(6), 99]) == 4
    assert ledger.reused(list(range(8))) == 7
