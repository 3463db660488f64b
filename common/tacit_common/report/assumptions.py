"""What a statement on privacy rests on, each with whether it held, as far as anybody can tell."""

from collections.abc import Iterator

from tacit_common.report import deployed
from tacit_common.report.claims import Assumption
from tacit_common.report.schema import Engine
from tacit_common.study import LocalPrivacyPlan, Study

_SUBJECTS = "All records of a subject are known to be that subject's."
SUBJECTS_GIVEN = Assumption(
    text=_SUBJECTS,
    held=None,
    why="The data set says which records belong together; nobody can check that it is complete.",
)
SUBJECTS_PRETENDED = Assumption(
    text=_SUBJECTS,
    held=False,
    why="The subjects are pretended, for rehearsal: so many records in a row count as one's.",
)
DEALT_TO_ONE_SITE = Assumption(
    text=deployed.ONE_SITE.text,
    held=True,
    why="The simulation dealt every record, and every subject whole, to exactly one site.",
)
CHOICES = Assumption(
    text="The order and the choice of hyper-parameters did not depend on these records.",
    held=None,
    why="Only who wrote the study knows; earlier trials on the same records add up.",
)
FOUND_SEPARABLE = Assumption(
    text=deployed.SEPARABLE.text,
    held=True,
    why="Every site checked it before it paid, on the path that clips, and found nothing: "
    "replacing, removing, poisoning and permuting records changed nothing elsewhere.",
)


def assumptions(
    study: Study, *, engine: Engine, pretended_subjects: bool = False
) -> tuple[Assumption, ...]:
    """Everything that the statement of a run rests on.

    `pretended_subjects`: a rehearsal made up which records belong together.
    """
    is_deployed = engine == "deployed"
    if not isinstance(study.privacy, LocalPrivacyPlan):
        between = (deployed.REVIEWED_PROGRAM, deployed.KEYS, deployed.JOURNAL)
        return between if is_deployed else ()
    return (
        *_of_units(study.privacy, is_deployed=is_deployed, pretended=pretended_subjects),
        CHOICES,
        *(_between_machines() if is_deployed else (FOUND_SEPARABLE,)),
    )


def _between_machines() -> Iterator[Assumption]:
    yield deployed.SEPARABLE
    yield deployed.REVIEWED_PROGRAM
    yield deployed.KEYS
    yield deployed.NO_ROLLBACK
    yield deployed.JOURNAL


def _of_units(
    privacy: LocalPrivacyPlan, *, is_deployed: bool, pretended: bool
) -> Iterator[Assumption]:
    if privacy.unit == "subject":
        yield SUBJECTS_PRETENDED if pretended else SUBJECTS_GIVEN
    yield deployed.ONE_SITE if is_deployed else DEALT_TO_ONE_SITE
