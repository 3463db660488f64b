"""`heads.json`: a ledger that was rolled back between two runs is caught by the second."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tacit_common.enrolment import SiteCard
from tacit_common.errors import LedgerError
from tacit_common.ledger_chain import SignedHead
from tacit_common.witness import HeadBook
from tacit_server.deployment.kept_heads import KeptHeads

HeadsOf = Callable[..., list[SignedHead]]


@pytest.fixture
def kept(tmp_path: Path) -> KeptHeads:
    return KeptHeads(tmp_path / "heads.json")


def card(head: SignedHead) -> SiteCard:
    return SiteCard.model_construct(site=head.site, public_key=head.public_key)


def seen(*heads: SignedHead) -> HeadBook:
    book = HeadBook()
    for head in heads:
        book.observe(head)
    return book


def begun(kept: KeptHeads, head: SignedHead) -> HeadBook:
    """What a new run knows of the site that signed `head`."""
    book = HeadBook()
    kept.restore(book, [card(head)])
    return book


def test_a_ledger_rolled_back_between_two_runs_is_caught(
    kept: KeptHeads, heads_of: HeadsOf
) -> None:
    heads = heads_of("clinic", 5)
    kept.keep(seen(heads[4]))
    book = begun(kept, heads[0])
    with pytest.raises(LedgerError, match="rolled back"):
        book.observe(heads[2])
    book.observe(heads[4])


def test_of_two_runs_side_by_side_the_newer_head_stays(kept: KeptHeads, heads_of: HeadsOf) -> None:
    heads, other = heads_of("clinic", 5), heads_of("ward", 2)
    kept.keep(seen(heads[3]))
    kept.keep(seen(heads[1], other[1]))  # the slower of the two
    assert begun(kept, heads[0]).heads == {"clinic": heads[3]}
    assert begun(kept, other[0]).heads == {"ward": other[1]}


def test_a_site_enrolled_anew_with_another_key_is_not_taken_for_a_rollback(
    kept: KeptHeads, heads_of: HeadsOf
) -> None:
    kept.keep(seen(heads_of("clinic", 5)[4]))
    anew = heads_of("clinic", 1, signer="another")[0]
    book = begun(kept, anew)
    book.observe(anew)
    assert book.heads == {"clinic": anew}


def test_a_fork_between_a_checkpoint_and_what_was_kept_costs_that_site_alone(
    kept: KeptHeads, heads_of: HeadsOf
) -> None:
    heads, fork, other = (
        heads_of("clinic", 5),
        heads_of("clinic", 5, fork="other"),
        heads_of("ward", 2),
    )
    kept.keep(seen(heads[3]))
    book = begun(kept, heads[0])
    book.merge({"clinic": fork[3], "ward": other[0]})
    with pytest.raises(LedgerError, match="forked"):
        book.observe(heads[4])
    book.observe(other[1])


@pytest.mark.parametrize("damage", ["", "null", "{}{}", '{"format": 2}'])
def test_a_damaged_file_is_an_error_and_never_forgetting(
    kept: KeptHeads, heads_of: HeadsOf, tmp_path: Path, damage: str
) -> None:
    head = heads_of("clinic", 1)[0]
    (tmp_path / "heads.json").write_text(damage)
    with pytest.raises(LedgerError, match="cannot be trusted"):
        begun(kept, head)
    with pytest.raises(LedgerError, match="cannot be trusted"):
        kept.keep(seen(head))


def test_a_head_that_somebody_wrote_into_the_file_is_an_error(
    kept: KeptHeads, heads_of: HeadsOf, tmp_path: Path
) -> None:
    head = heads_of("clinic", 1)[0]
    kept.keep(seen(head))
    file = tmp_path / "heads.json"
    file.write_text(file.read_text().replace(f'"seq": {head.seq}', '"seq": 999'))
    with pytest.raises(LedgerError, match="not signed"):
        begun(kept, head)
