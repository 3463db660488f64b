"""What was heard once is not heard again: not in another order, and not after a restart."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit_client.deployment.correspondence import Correspondence
from tacit_common.errors import LedgerError, RefusalCode, SiteRefusal

Open = Callable[[], Correspondence]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the list of one site, as each of its lives does."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Correspondence(tmp_path / "sessions.db")))


def is_refused(heard: Correspondence, session: str, sequence: int) -> bool:
    try:
        heard.take(session, sequence)
    except SiteRefusal as refusal:
        return refusal.code is RefusalCode.REPLAY
    return False


def test_requests_are_taken_in_their_order_with_gaps(opened: Open) -> None:
    heard = opened()
    assert [is_refused(heard, "a", number) for number in (1, 2, 5, 2**53)] == [False] * 4


def test_a_request_that_is_repeated_is_refused(opened: Open) -> None:
    heard = opened()
    heard.take("a", 3)
    assert is_refused(heard, "a", 3)


def test_a_request_that_comes_after_a_later_one_is_refused(opened: Open) -> None:
    heard = opened()
    heard.take("a", 3)
    assert is_refused(heard, "a", 2)
    assert not is_refused(heard, "a", 4)


def test_a_request_that_is_repeated_after_a_restart_is_refused(opened: Open) -> None:
    before = opened()
    before.take("a", 1)
    before.take("b", 7)
    before.close()
    after = opened()
    assert is_refused(after, "a", 1)
    assert is_refused(after, "b", 7)
    assert not is_refused(after, "a", 2)


def test_a_request_of_an_earlier_session_is_refused_after_the_next_has_begun(opened: Open) -> None:
    heard = opened()
    heard.take("a", 1)
    heard.take("b", 1)
    assert is_refused(heard, "a", 1)


def test_two_processes_do_not_both_take_one_request(opened: Open) -> None:
    one, other = opened(), opened()
    one.take("a", 1)
    assert is_refused(other, "a", 1)


@settings(max_examples=30)
@given(asked=st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 6)), max_size=25))
def test_what_is_taken_of_each_session_only_grows(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, int]]
) -> None:
    last: dict[str, int] = {}
    path = tmp_path_factory.mktemp("sessions") / "sessions.db"
    with closing(Correspondence(path)) as heard:
        for session, number in asked:
            assert is_refused(heard, session, number) == (number <= last.get(session, 0))
            last[session] = max(number, last.get(session, 0))


@pytest.mark.parametrize("damage", ["no database", "a folder", "no folder"])
def test_without_a_list_that_can_be_used_nothing_is_taken(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "sessions.db"
    if damage == "no database":
        path.write_bytes(b"not a database at all, but long enough to be looked at" * 40)
    elif damage == "a folder":
        path.mkdir()
    else:
        path = tmp_path / "absent" / "sessions.db"
    with pytest.raises(LedgerError, match="list of sessions"):
        Correspondence(path)
