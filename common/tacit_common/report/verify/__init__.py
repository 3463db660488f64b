"""Verifying a report offline: every figure recomputed, every signature and chain checked."""

from tacit_common.report.verify.checks import (
    NOT_CHECKED,
    check_signatures,
    read_document,
    run_checks,
    verify,
)
from tacit_common.report.verify.findings import Check, Finding, all_hold

__all__ = [
    "NOT_CHECKED",
    "Check",
    "Finding",
    "all_hold",
    "check_signatures",
    "read_document",
    "run_checks",
    "verify",
]
