"""A check that was passed is remembered for the code that passed it, and for no other."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tacit_client.dp_sgd import PerUnitGradients
from tacit_client.in_unit import InUnitGradients
from tacit_common.errors import PrivacyConfigError
from tacit_common.model import build_model
from tacit_common.objectives.contract import Objective
from tacit_common.plugins import PluginTable
from tacit_common.privacy.separability import Certificates, certificate, certificate_key
from tacit_common.study import Study

MakeStudy = Callable[..., Study]


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "site" / "checks.json")


@pytest.fixture
def key_of(make_study: MakeStudy) -> Callable[..., str | None]:
    def key(*overrides: str, path: Callable[..., object] = PerUnitGradients) -> str | None:
        study = make_study(*overrides)
        return certificate_key(study, *build_model(study, PluginTable()), path)

    return key


def test_a_check_that_was_passed_runs_once(certificates: Certificates, tmp_path: Path) -> None:
    runs: list[str] = []
    for key in ("a", "b", "a", "b"):
        certificates.require(key, lambda key=key: runs.append(key))
    assert runs == ["a", "b"]
    later = Certificates(tmp_path / "site" / "checks.json")
    later.require("a", lambda: runs.append("again"))
    assert runs == ["a", "b"]


def test_a_check_that_failed_is_never_remembered(certificates: Certificates) -> None:
    def fail() -> None:
        raise PrivacyConfigError("refused", why="test", fix="none")

    for _ in range(2):
        with pytest.raises(PrivacyConfigError):
            certificates.require("a", fail)
    runs: list[int] = []
    certificates.require("a", lambda: runs.append(1))
    assert runs == [1]


def test_without_a_key_a_check_runs_every_time(certificates: Certificates) -> None:
    runs: list[int] = []
    for _ in range(3):
        certificates.require(None, lambda: runs.append(1))
    assert len(runs) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'["a"]',
        b'{"format": 2, "passed": ["a"]}',
        b'{"format": 1, "passed": "a"}',
        b"\xff",
    ],
)
def test_a_file_that_cannot_be_trusted_certifies_nothing(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "checks.json"
    file.write_bytes(content)
    runs: list[int] = []
    for _ in range(2):
        Certificates(file).require("a", lambda: runs.append(1))
    assert runs == [1]  # and then the file is whole


def test_the_file_stays_small(certificates: Certificates, tmp_path: Path) -> None:
    for number in range(certificate.MOST_KEPT + 5):
        certificates.require(f"{number}", lambda: None)
    runs: list[int] = []
    certificates.require(f"{certificate.MOST_KEPT + 4}", lambda: runs.append(1))
    certificates.require("0", lambda: runs.append(2))
    assert runs == [2]  # the oldest was dropped


# --- what a certificate is for ---------------------------------------------------------


def test_the_same_code_and_study_have_one_key(key_of: Callable[..., str | None]) -> None:
    key = key_of()
    assert key is not None
    assert len(key) == 64
    assert key_of() == key
    assert key_of("seed=7") == key  # other weights
    assert key_of("federation.rounds=9", "privacy.epsilon=1.0") == key
    split = partial(PerUnitGradients, records_per_unit=2)
    assert key_of(path=split) == key_of(path=partial(PerUnitGradients, records_per_unit=2))


def test_whatever_a_check_depends_on_changes_the_key(
    key_of: Callable[..., str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [
        key_of(),
        key_of("encoder.depth=2"),
        key_of("objective.mask_ratio=0.25"),
        key_of("views.max_shift=0.1"),
        key_of("federation.augmentations=2"),
        key_of("privacy.unit=subject", "privacy.records_per_subject=2"),
        key_of(path=InUnitGradients),
        key_of(path=partial(PerUnitGradients, records_per_unit=2)),
        key_of(path=partial(PerUnitGradients, records_per_unit=3)),
    ]
    versions = {"torch": "9.9", "opacus": "1", "numpy": "2", "tacit": "3"}
    monkeypatch.setattr(certificate, "_version", lambda name: versions[name])
    keys.append(key_of())
    versions["opacus"] = "1.1"
    keys.append(key_of())
    assert None not in keys
    assert len(set(keys)) == len(keys)


@pytest.fixture
def plugin(
    tmp_path: Path, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], str | None]:
    """The key of an objective that lives in `own_objective.py`, imported anew each time."""
    monkeypatch.syspath_prepend(tmp_path)

    def key() -> str | None:
        for name in ("own_objective", "own_helper"):
            sys.modules.pop(name, None)
        study = make_study()
        model, _ = build_model(study, PluginTable())
        from own_objective import Own  # type: ignore[import-not-found]

        return certificate_key(study, model, Own(), PerUnitGradients)

    return key


def test_a_change_in_a_plug_in_or_in_a_file_that_it_uses_changes_the_key(
    tmp_path: Path, plugin: Callable[[], str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_objective.py").write_text("from own_helper import f\nclass Own: pass\n")
    (tmp_path / "own_helper.py").write_text("def f(): return 1\n")
    first = plugin()
    assert first is not None
    assert plugin() == first
    (tmp_path / "own_helper.py").write_text("def f(): return 22\n")
    second = plugin()
    (tmp_path / "own_objective.py").write_text("from own_helper import f\nclass Own: x = 1\n")
    third = plugin()
    assert len({first, second, third, None}) == 4


def test_what_an_objective_was_given_changes_the_key(make_study: MakeStudy) -> None:
    study = make_study()
    model, objective = build_model(study, PluginTable())
    plain = certificate_key(study, model, objective, PerUnitGradients)
    objective.temperature = 0.5  # type: ignore[attr-defined]
    assert certificate_key(study, model, objective, PerUnitGradients) != plain


def test_code_without_a_source_is_never_certified(make_study: MakeStudy) -> None:
    space: dict[str, type[Objective]] = {}
    exec("class Typed: pass", {"__name__": "nowhere"}, space)  # noqa: S102 - typed in, no file
    study = make_study()
    model, _ = build_model(study, PluginTable())
    assert certificate_key(study, model, space["Typed"](), PerUnitGradients) is None


def test_weights_are_no_part_of_a_certificate(make_study: MakeStudy) -> None:
    study = make_study()
    model, objective = build_model(study, PluginTable())
    before = certificate_key(study, model, objective, PerUnitGradients)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert certificate_key(study, model, objective, PerUnitGradients) == before
    frozen = next(model.parameters()).requires_grad_(False)
    assert not frozen.requires_grad
    assert certificate_key(study, model, objective, PerUnitGradients) != before
