"""Whoever keeps the heads of ledgers notices one that was rolled back or forked."""

from collections.abc import Callable

import pytest

from tacit_common.errors import LedgerError
from tacit_common.ledger_chain import SignedHead
from tacit_common.witness import HeadBook

HeadsOf = Callable[..., list[SignedHead]]


def test_heads_that_follow_are_kept_and_the_newest_stays(heads_of: HeadsOf) -> None:
    book = HeadBook()
    for head in [*heads_of("a", 3), heads_of("b", 1)[0]]:
        book.observe(head)
        book.observe(head)  # the same word twice is no news
    assert book.heads == {"a": heads_of("a", 3)[2], "b": heads_of("b", 1)[0]}


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        ("rollback", "rolled back"),
        ("fork", "forked"),
        ("forged", "not signed"),
        ("key", "another key than before"),
    ],
)
def test_a_head_that_does_not_follow_is_refused_and_not_kept(
    heads_of: HeadsOf, attack: str, why: str
) -> None:
    book = HeadBook()
    good = heads_of("a", 3)[2]
    book.observe(good)
    bad = {
        "rollback": heads_of("a", 2)[1],
        "fork": heads_of("a", 3, fork="x")[2],
        "forged": good.model_copy(update={"seq": 9}),
        "key": heads_of("a", 4, signer="b")[3],  # genuine, of somebody who claims the name
    }[attack]
    with pytest.raises(LedgerError) as raised:
        book.observe(bad)
    assert why in str(raised.value)
    assert book.heads == {"a": good}


def test_a_checkpoint_s_heads_count_like_observed_ones(heads_of: HeadsOf) -> None:
    book = HeadBook()
    book.restore({"a": heads_of("a", 3)[2]})
    with pytest.raises(LedgerError, match="rolled back"):
        book.observe(heads_of("a", 2)[1])
    book.observe(heads_of("a", 4)[3])
    book.restore({"a": heads_of("a", 3)[2]})  # an older checkpoint does not set it back
    assert book.heads["a"].seq == 3
    with pytest.raises(LedgerError, match="forked"):
        book.restore({"a": heads_of("a", 4, fork="x")[3]})
