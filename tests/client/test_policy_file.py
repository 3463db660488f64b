"""The policy's file says what it means, comes back as it was, and names what is wrong in it."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from tacit_client.policy import SitePolicy
from tacit_client.policy.file import policy_toml, read_policy, write_policy
from tacit_client.policy.hours import Hours
from tacit_client.policy.sections import Allowed, Consent, Resources, StudyLimits
from tacit_common.errors import UsageError

NEW = SitePolicy.to_begin_with(unit="subject", epsilon_cap=8.0, delta=1e-6)
REHEARSAL = SitePolicy.rehearsal(unit="record", epsilon_cap=1.0, delta=1e-5, allow_non_private=True)
FULL = NEW.model_copy(
    update={
        "hours": Hours(days=("monday",), opens="20:00", closes="06:00", timezone="UTC"),
        "resources": Resources(cpu_threads=3, bandwidth_mbit_s=12.5, largest_message_mb=64),
        "allow": NEW.allow.model_copy(update={"encoders": ("a" * 64, "b" * 64), "probes": ()}),
    }
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


def wrong(path: Path) -> str:
    with pytest.raises(UsageError) as raised:
        read_policy(path)
    return str(raised.value)


@pytest.mark.parametrize("policy", [NEW, REHEARSAL, FULL], ids=["new", "rehearsal", "full"])
def test_a_policy_comes_back_as_it_was(path: Path, policy: SitePolicy) -> None:
    write_policy(path, policy)
    assert read_policy(path) == policy


def test_above_every_field_stands_what_it_means() -> None:
    text = " ".join(line.removeprefix("#").strip() for line in policy_toml(NEW).splitlines())
    models = (SitePolicy, StudyLimits, Allowed, Consent, Hours, Resources)
    fields = [
        (name, field.description)
        for model in models
        for name, field in model.model_fields.items()
        if field.description
    ]
    assert len(fields) >= 20
    for name, description in fields:
        assert re.search(rf"{re.escape(description)} {name} =", text), name


def test_what_is_left_out_stands_there_as_a_comment_that_works(path: Path) -> None:
    """Whoever takes the '#' away has a section that is right."""
    lines = policy_toml(NEW).splitlines()
    start = lines.index("# [hours]")
    end = lines.index("[resources]")
    opened = [
        line.removeprefix("# ") if re.match(r"# (\[|\w+ = )", line) else line
        for line in lines[start:end]
    ]
    path.write_text("\n".join([*lines[:start], *opened, *lines[end:]]), encoding="utf-8")
    hours = read_policy(path).hours
    assert hours is not None
    assert (hours.opens, hours.closes, len(hours.days)) == ("20:00", "06:00", 5)


def test_a_wrong_field_is_named_with_the_nearest_right_one(path: Path) -> None:
    text = policy_toml(NEW).replace("epsilon_cap", "epsilon_capp", 1)
    path.write_text(text.replace("largest_l2_clip_norm", "largest_clip_norm"), encoding="utf-8")
    said = wrong(path)
    assert "4 wrong fields" in said
    assert "'epsilon_capp' is not a field; did you mean 'epsilon_cap'?" in said
    assert "'epsilon_cap' is missing: it has no default" in said
    assert "'study.largest_clip_norm' is not a field; did you mean 'largest_l2_clip_norm'?" in said


def test_an_objective_that_nobody_knows_is_named_with_the_nearest(path: Path) -> None:
    path.write_text(policy_toml(NEW).replace('"masked"', '"maskd"'), encoding="utf-8")
    said = wrong(path)
    assert "'allow.objectives.0': 'maskd' is none of" in said
    assert "did you mean 'masked'?" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), ("unit =", "not valid TOML"), ("\xff", "not UTF-8")],
    ids=["missing", "no_toml", "no_text"],
)
def test_a_file_that_is_no_policy_is_a_typed_error(
    path: Path, content: str | None, says: str
) -> None:
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    assert says in wrong(path)


def test_a_policy_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"'policy\.toml' cannot be written"):
        write_policy(tmp_path / "file" / "policy.toml", NEW)


# --- what a policy may say -------------------------------------------------------------


BEARING_ON_PRIVACY = {
    SitePolicy: {"unit", "epsilon_cap", "delta", "allow_non_private", "study", "allow"},
    StudyLimits: {
        "epsilon_cap",
        "smallest_noise_multiplier",
        "largest_l2_clip_norm",
        "largest_sampling_rate",
    },
    Allowed: {"modes", "objectives", "encoders", "probes", "releases"},
}


@pytest.mark.parametrize("model", BEARING_ON_PRIVACY, ids=lambda model: model.__name__)
def test_nothing_that_bears_on_privacy_has_a_default(model: Any) -> None:
    without = {
        name
        for name, field in model.model_fields.items()
        if field.default is PydanticUndefined and field.default_factory is None
    }
    assert without == BEARING_ON_PRIVACY[model]


def test_consent_is_asked_for_unless_the_operator_says_otherwise() -> None:
    document = NEW.model_dump()
    del document["consent"]
    assert SitePolicy.model_validate(document).consent.approval == "each study"


def test_a_new_site_admits_nothing_without_privacy_and_nothing_unseen() -> None:
    assert not NEW.allow_non_private
    assert NEW.allow.modes == ("local",)
    assert "train_loss" not in NEW.allow.releases
    assert "simclr" not in NEW.allow.objectives
    assert NEW.consent.approval == "each study"
    assert NEW.study.epsilon_cap <= NEW.epsilon_cap


@pytest.mark.parametrize(
    "wrong",
    [
        {"allow": {"modes": ["local", "none"]}},  # allow_non_private is false
        {"allow": {"modes": ["distributed"]}},
        {"allow": {"objectives": ["plugin"]}},
        {"allow": {"objectives": ["plugin:"]}},  # as those below, it would match nothing
        {"allow": {"objectives": ["plugin:*"]}},
        {"allow": {"objectives": ["plugin:any"]}},
        {"allow": {"probes": ["plugin:Mine"]}},
        {"allow": {"encoders": ["A" * 64]}},
        {"allow": {"encoders": ["vit"]}},
        {"allow": {"probes": ["rigde"]}},
        {"allow": {"releases": ["gradients"]}},
        {"allow": {"everything": True}},
        {"study": {"epsilon_cap": 0.0}},
        {"study": {"epsilon_cap": math.inf}},
        {"study": {"smallest_noise_multiplier": -0.1}},
        {"study": {"smallest_noise_multiplier": math.nan}},
        {"study": {"largest_l2_clip_norm": math.inf}},
        {"study": {"largest_sampling_rate": 1.01}},
        {"consent": {"approval": "some studies"}},
        {"resources": {"gpu_memory_share": 0.0}},
        {"resources": {"cpu_threads": 0}},
        {"resources": {"bandwidth_mbit_s": 0.0}},
        {"smallest_cohort": 5},
    ],
    ids=str,
)
def test_a_policy_that_means_nothing_or_two_things_is_refused(wrong: dict[str, Any]) -> None:
    sound = NEW.model_dump()
    for section, change in wrong.items():
        sound[section] = sound[section] | change if isinstance(change, dict) else change
    with pytest.raises(ValidationError):
        SitePolicy.model_validate(sound)


def test_the_bandwidth_in_bytes() -> None:
    assert Resources().bytes_per_s is None
    assert Resources(bandwidth_mbit_s=80.0).bytes_per_s == 10e6
