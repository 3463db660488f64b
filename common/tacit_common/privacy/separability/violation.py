"""What separability asks for, and how a broken clause is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from tacit_common.errors import PrivacyConfigError


class Clause(StrEnum):
    """What separability asks for; each can be broken where the others hold."""

    VIEWS_DRAWN = "views draw all their randomness from the generator"
    VIEWS_OWN = "view i is a view of record i alone"
    FINITE = "every record has one finite row"
    DEPENDS = "the loss depends on the parameters"
    SAME = "the same inputs give the same result"
    REPLACED = "row i stays when record j is replaced"
    REMOVED = "row i stays when other records are removed"
    ALONE = "row i is that of record i alone"
    PERMUTED = "rows are permuted as the records are"
    DERIVATIVE = "row i has no derivative with respect to record j"
    TOTAL = "the rows add up to the gradient of the total loss"
    BOUNDED = "one unit changes the clipped sum by at most the clip norm"
    MEMORY = "parameters, buffers and attributes stay as they were"
    RUNS = "every probe runs"


_COUPLED = "what looks like one record's gradient depends on others, so clipping bounds nothing"
_USE_SEPARABLE = (
    "compute each row from its own record, for example with LayerNorm for BatchNorm and a mean "
    "over a record's own tokens; or declare the coupling, and use unit 'subject', objective "
    "'logit_dp' or mode 'none'"
)
_KEEP_NOTHING = (
    "keep no queue, running mean or counter, draw randomness in views from the generator only, "
    "and make constants when the objective is built"
)

# What a broken clause means, and what to do.
_MEANING: dict[Clause, tuple[str, str]] = {
    Clause.VIEWS_DRAWN: (
        "a view that draws elsewhere cannot be repeated, so nothing about it can be checked",
        "draw from the generator that views is given",
    ),
    Clause.VIEWS_OWN: (
        "a view mixes records, so a record's gradient holds more than the record",
        "make each view from its own record; mixing such as MixUp is for mode 'none'",
    ),
    Clause.FINITE: (
        "a row that is missing or not finite contributes nothing, so nothing can be checked",
        "give one finite loss a record on plain records, and one gradient row a parameter",
    ),
    Clause.DEPENDS: (
        "there is no gradient to check, or to train with",
        "let the loss reach the model's parameters",
    ),
    Clause.SAME: (
        "the result depends on what came before, or on randomness outside the views",
        _KEEP_NOTHING,
    ),
    Clause.REPLACED: (_COUPLED, _USE_SEPARABLE),
    Clause.REMOVED: (
        "the result depends on how many records were drawn, which is private",
        _USE_SEPARABLE,
    ),
    Clause.ALONE: (_COUPLED, _USE_SEPARABLE),
    Clause.PERMUTED: (_COUPLED, _USE_SEPARABLE),
    Clause.DERIVATIVE: (_COUPLED, _USE_SEPARABLE),
    Clause.TOTAL: (
        "part of the gradient would be used without being clipped, or lost",
        "use every parameter through the layer that holds it, called with one row a record; look "
        "a free-standing parameter up in an nn.Embedding",
    ),
    Clause.BOUNDED: (
        "the noise is made for the clip norm, and would be too small",
        "clip the gradient of each unit before it is added",
    ),
    Clause.MEMORY: (
        "what is remembered carries records from step to step outside the clipped gradient",
        _KEEP_NOTHING,
    ),
    Clause.RUNS: (
        "what cannot be checked is not taken for separable",
        "take any number of records, larger values and NaN without an error, and use operations "
        "with a forward-mode derivative",
    ),
}


@dataclass(frozen=True)
class Violation:
    """A broken clause, and which probe broke it."""

    clause: Clause
    detail: str

    def refusal(self, objective_name: str) -> PrivacyConfigError:
        """The error that says so: the clause, what it means, and what to do."""
        meaning, fix = _MEANING[self.clause]
        return PrivacyConfigError(
            f"objective '{objective_name}' is not separable on this model",
            why=f"the check that {self.clause} failed ({self.detail}): {meaning}",
            fix=fix,
        )


@contextmanager
def refusing_errors(objective_name: str) -> Iterator[None]:
    """Turn whatever a probe raises into a refusal; a refusal stays what it is."""
    try:
        yield
    except PrivacyConfigError:
        raise
    except Exception as error:  # what a model, an objective or a path may raise
        detail = f"a probe raised {type(error).__name__}"
        raise Violation(Clause.RUNS, detail).refusal(objective_name) from error
