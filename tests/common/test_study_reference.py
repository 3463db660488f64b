"""The page that describes the study: it says what the models say."""

import re
from typing import Any

import pytest

from tacit_common.study import StudyFile
from tacit_common.study_file import parse_study
from tacit_common.study_reference import EXAMPLE_STUDY, study_reference

PAGE = study_reference()
SCHEMA: dict[str, Any] = StudyFile.model_json_schema()


def row(field: str, section: str) -> list[str]:
    """The cells of a field's row under the heading that ends in `section`."""
    _, _, rest = PAGE.partition(f"{section}`\n")
    body = re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0]
    line = next(line for line in body.splitlines() if line.startswith(f"| `{field}` |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_example_is_a_whole_study() -> None:
    study = parse_study(EXAMPLE_STUDY)
    assert study.simulation is not None
    assert EXAMPLE_STUDY in PAGE


def test_every_field_of_every_model_has_a_row() -> None:
    for name, model in {"StudyFile": SCHEMA, **SCHEMA["$defs"]}.items():
        for field in model["properties"]:
            if field not in ("kind", "mode", "by"):
                assert f"| `{field}` |" in PAGE, f"{name}.{field}"


def test_sections_stand_in_the_order_of_the_file() -> None:
    headings = re.findall(r"^## `\[+(\w+)\]+`$", PAGE, re.MULTILINE)
    sections = [name for name in SCHEMA["properties"] if name not in ("name", "seed")]
    assert headings == sections


def test_every_kind_of_a_section_has_a_heading_that_is_linked() -> None:
    for key, tags in (
        ("encoder.kind", {"vit", "plugin"}),
        ("objective.kind", {"masked", "bank_contrast", "simclr", "plugin"}),
        ("privacy.mode", {"local", "none"}),
        ("federation.strategy.kind", {"fedavg", "fedavgm", "fedadam", "fedprox", "plugin"}),
        ("simulation.partition.kind", {"iid", "dirichlet"}),
    ):
        for tag in tags:
            heading = f'{key} = "{tag}"'
            assert re.search(f"^#+ `{re.escape(heading)}`$", PAGE, re.MULTILINE), heading
            fragment = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
            assert f"](#{fragment})" in PAGE, fragment


@pytest.mark.parametrize(
    ("section", "field", "expected"),
    [
        ('encoder.kind = "vit"', "image_size", "4 ≤ integer ≤ 1024"),
        ('encoder.kind = "vit"', "patch_size", "integer ≥ 1"),
        ('privacy.mode = "local"', "epsilon", "number > 0"),
        ('privacy.mode = "local"', "delta", "1e-12 ≤ number < 1"),
        ('privacy.mode = "local"', "sampling_rate", "0 < number ≤ 1"),
        ('objective.kind = "masked"', "style", '`"mae"` or `"simmim"`'),
        ("[federation]", "cohort_size", "integer ≥ 1"),
        ('probes.kind = "ridge"', "when", 'list of `"before"` or `"after"`'),
    ],
)
def test_a_row_states_type_and_range(section: str, field: str, expected: str) -> None:
    assert row(field, section)[1] == expected


@pytest.mark.parametrize(
    ("section", "field", "expected"),
    [
        ('privacy.mode = "local"', "epsilon", "**required**"),
        ("[federation]", "quorum", "`0.5`"),
        ("[federation]", "cohort_size", "none"),
        ("[federation]", "strategy", '`kind = "fedavg"`'),
        ("[views]", "flip", "`false`"),
        ('probes.kind = "ridge"', "when", '`["before", "after"]`'),
    ],
)
def test_a_row_states_the_default(section: str, field: str, expected: str) -> None:
    assert row(field, section)[2] == expected


def test_nothing_under_differential_privacy_has_a_default() -> None:
    # The contribution cap is required where the unit is the subject, and refused elsewhere.
    fields = SCHEMA["$defs"]["LocalPrivacyPlan"]["properties"].keys() - {
        "mode",
        "records_per_subject",
    }
    assert len(fields) == 5
    assert {row(field, 'privacy.mode = "local"')[2] for field in fields} == {"**required**"}
