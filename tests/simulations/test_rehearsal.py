"""What is said of the sites' holdings before a study runs."""

from collections.abc import Callable

import pytest

from tacit_common.study import StudyFile
from tacit_simulations.rehearsal import held_units, in_words
from tacit_simulations.simulate import check

MakeFile = Callable[..., StudyFile]


def test_every_record_or_subject_is_held_by_one_site(study_file: MakeFile) -> None:
    records = study_file()
    assert sum(held_units(records, check(records))) == 1437
    people = study_file(
        "privacy.unit=subject",
        "privacy.records_per_subject=3",
        'simulation.subjects={ by = "blocks", size = 3 }',
    )
    assert sum(held_units(people, check(people))) == 479


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (400, "3 sites hold 479 records each, 400 are declared"),
        (500, "more than any site holds, so every update comes out too small"),
    ],
)
def test_the_sentence_says_whether_more_is_declared_than_held(
    study_file: MakeFile, declared: int, said: str
) -> None:
    study = study_file(f"simulation.declared_units={declared}")
    sentence = in_words(study, check(study))
    assert said in sentence
    assert ("more than any" in sentence) == (declared == 500)
    assert "weigh less" not in sentence


def test_uneven_sites_are_told_apart(study_file: MakeFile) -> None:
    uneven = study_file('simulation.partition={ kind = "dirichlet", alpha = 0.3 }')
    held = held_units(uneven, check(uneven))
    between = study_file(
        'simulation.partition={ kind = "dirichlet", alpha = 0.3 }',
        f"simulation.declared_units={max(held)}",
    )
    assert min(held) < max(held)
    assert "where fewer are held" in in_words(between, check(between))
