"""Signed messages: the sender, the recipient, the order, the content, and what is answered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tacit_common.envelope import (
    AnswerEnvelope,
    RequestEnvelope,
    RequestSeal,
    require_answer,
    require_request,
    seal_answer,
)
from tacit_common.errors import IdentityError
from tacit_common.identity import Identity

COORDINATOR, SITE, OTHER = Identity.create(), Identity.create(), Identity.create()
CONTENT, OTHER_CONTENT = "a" * 64, "b" * 64

HEX64 = st.text("0123456789abcdef", min_size=64, max_size=64)


def sealed(content: str = CONTENT, *, by: Identity = COORDINATOR) -> RequestEnvelope:
    return RequestSeal(by).seal(content, recipient=SITE.public_key)


def taken(envelope: RequestEnvelope, content: str = CONTENT, *, site: Identity = SITE) -> None:
    require_request(envelope, content, coordinator=COORDINATOR.public_key, site=site.public_key)


# --- requests ----------------------------------------------------------------------------


def test_a_site_takes_what_its_coordinator_sealed_for_it() -> None:
    taken(sealed())


def test_a_request_signed_by_another_key_is_refused() -> None:
    with pytest.raises(IdentityError, match="another key than the coordinator's"):
        taken(sealed(by=OTHER))


def test_a_request_that_names_the_coordinator_but_was_signed_by_another_is_refused() -> None:
    forged = sealed(by=OTHER).model_copy(update={"sender": COORDINATOR.public_key})
    with pytest.raises(IdentityError, match="signature does not hold"):
        taken(forged)


def test_a_request_to_another_site_is_refused() -> None:
    with pytest.raises(IdentityError, match="another site"):
        taken(sealed(), site=OTHER)


def test_a_request_that_was_turned_to_another_site_is_refused() -> None:
    turned = sealed().model_copy(update={"recipient": OTHER.public_key})
    with pytest.raises(IdentityError, match="signature does not hold"):
        taken(turned, site=OTHER)


def test_other_content_in_a_genuine_envelope_is_refused() -> None:
    with pytest.raises(IdentityError, match="not what was signed"):
        taken(sealed(), OTHER_CONTENT)


def test_other_content_whose_digest_was_put_into_the_envelope_is_refused() -> None:
    changed = sealed().model_copy(update={"content_sha256": OTHER_CONTENT})
    with pytest.raises(IdentityError, match="signature does not hold"):
        taken(changed, OTHER_CONTENT)


@given(
    change=st.one_of(
        st.fixed_dictionaries({"sequence": st.integers(1, 2**53)}),
        st.fixed_dictionaries({"session": HEX64.map(lambda text: text[:32])}),
        st.fixed_dictionaries({"content_sha256": HEX64}),
        st.fixed_dictionaries({"sender": HEX64}),
        st.fixed_dictionaries({"recipient": HEX64}),
        st.fixed_dictionaries({"signature": HEX64.map(lambda text: text * 2)}),
    )
)
def test_any_other_value_of_any_field_of_a_request_breaks_it(change: dict[str, object]) -> None:
    genuine = sealed()
    changed = genuine.model_copy(update=change)
    if changed == genuine:
        return
    with pytest.raises(IdentityError):
        require_request(
            changed,
            changed.content_sha256,
            coordinator=changed.sender,
            site=changed.recipient,
        )


def test_every_field_of_an_envelope_is_among_those_that_were_changed() -> None:
    assert set(RequestEnvelope.model_fields) == {
        *("sequence", "session", "content_sha256", "sender", "recipient", "signature"),
    }
    assert set(AnswerEnvelope.model_fields) == {"sender", "content_sha256", "signature", "request"}


def test_numbers_grow_from_request_to_request_of_each_site_and_each_life_has_a_session() -> None:
    seal = RequestSeal(COORDINATOR)
    first = [seal.seal(CONTENT, recipient=SITE.public_key) for _ in range(3)]
    other = seal.seal(CONTENT, recipient=OTHER.public_key)
    assert [envelope.sequence for envelope in (*first, other)] == [1, 2, 3, 1]
    assert {envelope.session for envelope in (*first, other)} == {first[0].session}
    assert RequestSeal(COORDINATOR).seal(CONTENT, recipient="a" * 64).session != first[0].session


@pytest.mark.parametrize("sequence", [0, -1, 2**53 + 1, 2**64])
def test_a_number_that_no_coordinator_reaches_is_not_read(sequence: int) -> None:
    with pytest.raises(ValidationError):
        RequestEnvelope.model_validate({**sealed().model_dump(), "sequence": sequence})


# --- answers -----------------------------------------------------------------------------


def test_the_answer_of_the_asked_site_to_this_request_is_believed() -> None:
    request = sealed()
    require_answer(seal_answer(SITE, CONTENT, request), CONTENT, request=request)


def test_an_answer_of_another_site_is_refused() -> None:
    request = sealed()
    with pytest.raises(IdentityError, match="another key than the asked site's"):
        require_answer(seal_answer(OTHER, CONTENT, request), CONTENT, request=request)


def test_an_answer_of_another_site_under_the_asked_site_s_name_is_refused() -> None:
    request = sealed()
    forged = seal_answer(OTHER, CONTENT, request).model_copy(update={"sender": SITE.public_key})
    with pytest.raises(IdentityError, match="signature does not hold"):
        require_answer(forged, CONTENT, request=request)


def test_an_answer_to_another_request_of_the_same_content_is_refused() -> None:
    """Replayed from an earlier session, or from an earlier round of this one."""
    seal = RequestSeal(COORDINATOR)
    earlier, now = (seal.seal(CONTENT, recipient=SITE.public_key) for _ in range(2))
    for before in (earlier, sealed()):
        with pytest.raises(IdentityError, match="answers another request"):
            require_answer(seal_answer(SITE, CONTENT, before), CONTENT, request=now)


def test_an_old_answer_that_was_made_to_name_this_request_is_refused() -> None:
    old, now = sealed(), sealed()
    forged = seal_answer(SITE, CONTENT, old).model_copy(update={"request": now.digest})
    with pytest.raises(IdentityError, match="signature does not hold"):
        require_answer(forged, CONTENT, request=now)


def test_an_answer_whose_content_was_changed_is_refused() -> None:
    request = sealed()
    answer = seal_answer(SITE, CONTENT, request)
    with pytest.raises(IdentityError, match="not what was signed"):
        require_answer(answer, OTHER_CONTENT, request=request)
    changed = answer.model_copy(update={"content_sha256": OTHER_CONTENT})
    with pytest.raises(IdentityError, match="signature does not hold"):
        require_answer(changed, OTHER_CONTENT, request=request)


def test_a_request_is_not_taken_for_an_answer_nor_an_answer_for_a_request() -> None:
    """A site that asked itself: one key, one content, and yet another purpose."""
    request = RequestSeal(SITE).seal(CONTENT, recipient=SITE.public_key)
    posing = AnswerEnvelope(
        sender=SITE.public_key,
        content_sha256=CONTENT,
        signature=request.signature,
        request=request.digest,
    )
    with pytest.raises(IdentityError, match="signature does not hold"):
        require_answer(posing, CONTENT, request=request)
