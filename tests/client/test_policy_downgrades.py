"""A server that asks for less privacy, or for more than it may have, gets a code and nothing else.

Each attempt is made with every request that names a study. Nothing is built, read or paid.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tacit_client.policy import SitePolicy
from tacit_client.policy.approvals import Approvals
from tacit_client.site import Site
from tacit_common.architecture import encoder_sha256
from tacit_common.errors import RefusalCode, SiteRefusal
from tacit_common.messages import DescribeRequest, Request, SiteDescription, TrainReply
from tacit_common.privacy.plan import calibrate
from tacit_common.study import Study

MakeStudy = Callable[..., Study]
MakeSite = Callable[..., Site]

MONDAY_NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)

# What the site of these tests allows: a little more than the tiny study with its probe asks for.
LIMITS: dict[str, Any] = {
    "epsilon_cap": 9.0,
    "smallest_noise_multiplier": 0.6,
    "largest_l2_clip_norm": 0.5,
    "largest_sampling_rate": 0.25,
    "largest_rounds": 2,
    "largest_local_steps": 2,
}
ALLOWED: dict[str, Any] = {
    "modes": ["local"],
    "objectives": ["masked"],
    "encoders": ["any"],
    "probes": ["ridge"],
    "releases": ["update", "probe"],
}


def policy_with(
    *,
    study: dict[str, Any] | None = None,
    allow: dict[str, Any] | None = None,
    **others: Any,
) -> SitePolicy:
    return SitePolicy.model_validate(
        {
            "unit": "record",
            "epsilon_cap": 100.0,
            "delta": 1e-5,
            "allow_non_private": False,
            "study": LIMITS | (study or {}),
            "allow": ALLOWED | (allow or {}),
            "consent": {"approval": "none"},
            **others,
        }
    )


def every_request(
    study: Study, train_request: Callable[..., Any], probe_request: Callable[..., Any]
) -> list[Request]:
    """Without a probe in the study, no probe is asked for."""
    asked: list[Request] = [DescribeRequest(study), train_request(study)]
    return [*asked, probe_request(study)] if study.probes else asked


def refusal_of(site: Site, request: Request) -> SiteRefusal:
    with pytest.raises(SiteRefusal) as raised:
        site.answer(request)
    return raised.value


@pytest.fixture
def attempt(
    make_site: MakeSite,
    make_study: MakeStudy,
    with_probe: str,
    train_request: Callable[..., Any],
    probe_request: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., SiteRefusal]:
    """`attempt(policy, "privacy.x=…")`: how a site refuses every request of such a study."""

    def make(
        policy: SitePolicy, *overrides: str, probe: bool = True, now: datetime = MONDAY_NOON
    ) -> SiteRefusal:
        study = make_study(*([with_probe] if probe else []), *overrides)
        requests = every_request(study, train_request, probe_request)
        site = replace(make_site(policy=policy), clock=lambda: now)
        with monkeypatch.context() as patch:
            for step in ("resident_model", "require_separable", "probe.require_labels"):
                patch.setattr(f"tacit_client.site.{step}", None)  # to call it would raise
            refusals = [refusal_of(site, request) for request in requests]
        assert site.ledger.charges == []
        first, *others = refusals
        assert {(r.code, r.why) for r in others} == {(first.code, first.why)}
        return first

    return make


def test_what_the_policy_just_allows_is_answered(
    make_site: MakeSite,
    make_study: MakeStudy,
    with_probe: str,
    train_request: Callable[..., Any],
    probe_request: Callable[..., Any],
) -> None:
    """Else each of the refusals below could have any reason."""
    study = make_study(with_probe)
    site = make_site(policy=policy_with())
    for request in every_request(study, train_request, probe_request):
        site.answer(request)
    assert len(site.ledger.charges) == 2


# --- attempts --------------------------------------------------------------------------


def test_mode_none_to_a_private_site(attempt: Callable[..., SiteRefusal], no_privacy: str) -> None:
    refusal = attempt(policy_with(), no_privacy, probe=False)
    assert refusal.code is RefusalCode.POLICY
    assert "no differential privacy" in refusal.why


def test_mode_none_to_a_site_that_lists_local_alone(
    attempt: Callable[..., SiteRefusal], no_privacy: str
) -> None:
    """To allow it in one place is not enough."""
    refusal = attempt(policy_with(allow_non_private=True), no_privacy, probe=False)
    assert refusal.code is RefusalCode.POLICY
    assert "privacy.mode 'none'" in refusal.why


def test_mode_local_to_a_site_for_rehearsals_without_privacy(
    attempt: Callable[..., SiteRefusal],
) -> None:
    policy = policy_with(allow_non_private=True, allow={"modes": ["none"]})
    assert attempt(policy).code is RefusalCode.POLICY


def test_noise_below_the_policys(
    attempt: Callable[..., SiteRefusal], make_study: MakeStudy, with_probe: str
) -> None:
    calibrated = calibrate(make_study(with_probe)).noise_multiplier
    assert calibrated is not None
    attempt_with = policy_with(study={"smallest_noise_multiplier": calibrated + 1e-4})
    refusal = attempt(attempt_with)
    assert refusal.code is RefusalCode.POLICY
    assert f"training has noise multiplier {calibrated:g}" in refusal.why


def test_noise_of_a_probe_below_the_policys(
    attempt: Callable[..., SiteRefusal], make_study: MakeStudy
) -> None:
    """A probe that costs much is noised little, and training beside it much."""
    loud = 'probes=[{ kind = "ridge", classes = 10, epsilon = 20.0, when = ["after"] }]'
    overrides = (loud, "privacy.epsilon=20.5")
    schedule = calibrate(make_study(*overrides))
    (of_probe,) = schedule.probe_noise_multipliers
    assert of_probe is not None
    assert schedule.noise_multiplier is not None
    assert of_probe < schedule.noise_multiplier
    roomy = {"epsilon_cap": 30.0, "smallest_noise_multiplier": of_probe + 1e-4}
    refusal = attempt(policy_with(study=roomy), *overrides, probe=False)
    assert refusal.code is RefusalCode.POLICY
    assert "a probe has noise multiplier" in refusal.why


def test_noise_below_the_studys_own(
    make_site: MakeSite, make_study: MakeStudy, train_request: Callable[..., Any]
) -> None:
    """The study is sound, and the round's plan is not the one that the study calls for."""
    study = make_study()
    calibrated = calibrate(study).noise_multiplier
    assert calibrated is not None
    site = make_site(policy=policy_with())
    refusal = refusal_of(site, train_request(study, noise_multiplier=calibrated - 1e-4))
    assert refusal.code is RefusalCode.POLICY
    assert site.ledger.charges == []


def test_another_unit(attempt: Callable[..., SiteRefusal]) -> None:
    refusal = attempt(policy_with(unit="subject"))
    assert refusal.code is RefusalCode.POLICY
    assert "protects a record" in refusal.why


@pytest.mark.parametrize(
    ("field", "just_more"),
    [
        ("privacy.l2_clip_norm", "0.5001"),
        ("privacy.sampling_rate", "0.2501"),
        ("federation.rounds", "3"),
        ("federation.local_steps", "3"),
    ],
    ids=["larger_clip", "larger_sampling_rate", "more_rounds", "more_local_steps"],
)
def test_a_figure_above_the_policys(
    attempt: Callable[..., SiteRefusal], field: str, just_more: str
) -> None:
    refusal = attempt(policy_with(), f"{field}={just_more}")
    assert refusal.code is RefusalCode.POLICY
    assert f"{field} = {just_more}" in refusal.why


def test_a_sampling_rate_above_the_policys_without_privacy(
    attempt: Callable[..., SiteRefusal],
) -> None:
    policy = policy_with(allow_non_private=True, allow={"modes": ["local", "none"]})
    everybody = 'privacy={ mode = "none", sampling_rate = 1.0 }'
    refusal = attempt(policy, everybody, probe=False)
    assert refusal.code is RefusalCode.POLICY
    assert "privacy.sampling_rate = 1" in refusal.why


def test_an_objective_that_is_not_allowed(attempt: Callable[..., SiteRefusal]) -> None:
    refusal = attempt(policy_with(allow={"objectives": ["bank_contrast"]}))
    assert refusal.code is RefusalCode.POLICY
    assert "objective 'masked' is not allowed here; allowed are: bank_contrast" in refusal.why


def test_a_plug_in_that_takes_the_name_of_a_built_in(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    study = make_study('objective={ kind = "plugin", name = "masked" }')
    refusal = refusal_of(make_site(policy=policy_with()), DescribeRequest(study))
    assert refusal.code is RefusalCode.POLICY
    assert "objective 'plugin:masked'" in refusal.why
    assert policy_with(allow={"objectives": ["plugin:masked"]}).objections(study) == []


def test_an_encoder_that_is_not_allowed(
    attempt: Callable[..., SiteRefusal], make_study: MakeStudy, with_probe: str
) -> None:
    known = encoder_sha256(make_study().encoder)
    policy = policy_with(allow={"encoders": [known]})
    assert policy.objections(make_study(with_probe)) == []
    refusal = attempt(policy, "encoder.depth=2")
    assert refusal.code is RefusalCode.POLICY
    assert known in refusal.why


def test_a_probe_that_is_not_allowed(attempt: Callable[..., SiteRefusal]) -> None:
    refusal = attempt(policy_with(allow={"probes": []}))
    assert refusal.code is RefusalCode.POLICY
    assert "probe 'ridge' is not allowed here; allowed are: none" in refusal.why


@pytest.mark.parametrize("kind", ["update", "probe"])
def test_a_release_that_is_not_allowed(attempt: Callable[..., SiteRefusal], kind: str) -> None:
    others = [release for release in ("update", "probe") if release != kind]
    refusal = attempt(policy_with(allow={"releases": others}))
    assert refusal.code is RefusalCode.POLICY
    assert f"release '{kind}'" in refusal.why


def test_an_account_that_is_not_allowed() -> None:
    with pytest.raises(SiteRefusal) as raised:
        policy_with().require_release("account")
    assert raised.value.code is RefusalCode.POLICY
    policy_with(allow={"releases": ["account"]}).require_release("account")


@pytest.mark.parametrize("listed", [True, False])
def test_a_training_loss_leaves_only_where_it_is_listed(
    make_site: MakeSite,
    make_study: MakeStudy,
    no_privacy: str,
    train_request: Callable[..., Any],
    listed: bool,
) -> None:
    """A study has no say in it, so the loss is withheld and the study is not refused."""
    releases = ["update", "train_loss"] if listed else ["update"]
    policy = policy_with(allow_non_private=True, allow={"modes": ["none"], "releases": releases})
    reply = make_site(policy=policy).answer(train_request(make_study(no_privacy)))
    assert isinstance(reply, TrainReply)
    assert (reply.train_loss is not None) is listed


def test_a_study_whose_own_delta_hides_what_it_costs(
    attempt: Callable[..., SiteRefusal],
    make_study: MakeStudy,
    with_probe: str,
) -> None:
    """At δ = 0.01 it says ε = 2; at the site's δ the same noise costs far more."""
    generous = (
        "privacy.delta=0.01",
        "privacy.epsilon=2.0",
        with_probe.replace("epsilon = 1.0", "epsilon = 0.5"),
    )
    study = make_study(*generous)
    schedule = calibrate(study)
    honest = policy_with().epsilon_of(schedule)
    assert schedule.planned_epsilon <= 2.0 < 1.5 * 2.0 < honest
    policy = policy_with(study={"epsilon_cap": 3.0, "smallest_noise_multiplier": 0.0})
    refusal = attempt(policy, *generous)
    assert refusal.code is RefusalCode.POLICY
    assert f"ε = {honest:.4g} at the site's δ = 1e-05" in refusal.why
    enough = policy_with(study={"epsilon_cap": honest, "smallest_noise_multiplier": 0.0})
    assert enough.objections(study) == []


def test_a_study_above_the_study_cap_though_the_data_sets_cap_has_room(
    attempt: Callable[..., SiteRefusal],
) -> None:
    refusal = attempt(policy_with(study={"epsilon_cap": 7.0}))
    assert refusal.code is RefusalCode.POLICY
    assert "the site allows 7 for one study" in refusal.why


def test_a_request_outside_the_sites_hours(attempt: Callable[..., SiteRefusal]) -> None:
    night = {"opens": "20:00", "closes": "06:00", "timezone": "UTC"}
    refusal = attempt(policy_with(hours=night), now=MONDAY_NOON)
    assert refusal.code is RefusalCode.HOURS
    assert "20:00 to 06:00 UTC" in refusal.why


def test_a_study_that_is_refused_anyway_costs_no_accounting(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a minute a request, for a study of a million steps, would be a way to stop a site."""
    monkeypatch.setattr("tacit_client.policy.model.calibrate", None)
    study = make_study("federation.rounds=1000000")
    with pytest.raises(SiteRefusal, match=r"federation\.rounds"):
        policy_with().require_allowed(study, now=datetime.now(UTC))


# --- consent ---------------------------------------------------------------------------


CONSENT = {"approval": "each study"}


@pytest.fixture
def asking_site(make_site: MakeSite, tmp_path: Path) -> Callable[[], Site]:
    """A site whose policy asks for consent, and which keeps it in a folder."""

    def make() -> Site:
        site = make_site(policy=policy_with(consent=CONSENT))
        return replace(site, approvals=Approvals(tmp_path, coordinator="c" * 64))

    return make


def agree(site: Site, study: Study) -> None:
    assert site.approvals is not None
    site.approvals.approve(study, epsilon=8.0, delta=1e-5, shown="a study")


def test_a_study_that_nobody_approved(
    asking_site: Callable[[], Site], make_study: MakeStudy, train_request: Callable[..., Any]
) -> None:
    site, study = asking_site(), make_study()
    for request in (DescribeRequest(study), train_request(study)):
        assert refusal_of(site, request).code is RefusalCode.APPROVAL
    assert site.ledger.charges == []
    agree(site, study)
    assert isinstance(site.answer(DescribeRequest(study)), SiteDescription)
    assert isinstance(site.answer(train_request(study)), TrainReply)


@pytest.mark.parametrize(
    "change",
    ["seed=9", "federation.client_lr=0.11", "privacy.l2_clip_norm=0.49", "views.flip=true"],
)
def test_a_study_that_was_changed_after_approval(
    asking_site: Callable[[], Site],
    make_study: MakeStudy,
    train_request: Callable[..., Any],
    change: str,
) -> None:
    """Also in a field that the policy would not mind."""
    site = asking_site()
    agree(site, make_study())
    assert refusal_of(site, train_request(make_study(change))).code is RefusalCode.APPROVAL
    assert site.ledger.charges == []


def test_an_approved_study_that_the_policy_does_not_allow(
    asking_site: Callable[[], Site], make_study: MakeStudy, train_request: Callable[..., Any]
) -> None:
    """Consent adds to the policy and takes nothing from it."""
    site, study = asking_site(), make_study("privacy.l2_clip_norm=3.0")
    agree(site, study)
    assert refusal_of(site, train_request(study)).code is RefusalCode.POLICY


def test_a_study_whose_consent_was_withdrawn_in_the_middle(
    asking_site: Callable[[], Site], make_study: MakeStudy, train_request: Callable[..., Any]
) -> None:
    site, study = asking_site(), make_study()
    agree(site, study)
    site.answer(train_request(study))
    assert site.approvals is not None
    site.approvals.withdraw(study.digest())
    assert refusal_of(site, train_request(study, round=2)).code is RefusalCode.APPROVAL
    assert refusal_of(site, train_request(study)).code is RefusalCode.APPROVAL  # nor once more


def test_a_site_that_asks_for_consent_and_keeps_none(
    attempt: Callable[..., SiteRefusal],
) -> None:
    assert attempt(policy_with(consent=CONSENT)).code is RefusalCode.APPROVAL


def test_a_study_that_the_policy_refuses_does_not_wait_for_a_person(
    asking_site: Callable[[], Site], make_study: MakeStudy
) -> None:
    site = asking_site()
    refusal_of(site, DescribeRequest(make_study("privacy.l2_clip_norm=3.0")))
    assert site.approvals is not None
    assert site.approvals.pending() == ()


def test_a_model_too_large_for_the_machine_is_refused_before_it_is_built(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    study = make_study("encoder.width=8192", "encoder.depth=200", "encoder.heads=8")
    site = make_site(policy=policy_with(resources={"largest_model_mb": 64}))
    refusal = refusal_of(site, DescribeRequest(study))
    assert refusal.code is RefusalCode.POLICY
    assert "resources.largest_model_mb" in refusal.fix
