"""The sections of the page that say how ε was counted, and what an audit measured."""

from tacit_common.privacy.events import GaussianRelease, NonPrivateRelease, PoissonGaussianSteps
from tacit_common.report import numbers
from tacit_common.report.claims import LocalPrivacy, Release
from tacit_common.report.page.blocks import (
    Cell,
    Column,
    Fact,
    Facts,
    Paragraph,
    Row,
    Section,
    Table,
)


def counting(privacy: LocalPrivacy) -> Section:
    """Mechanisms, accountants, and what the code really does."""
    return Section(
        "counting",
        "How ε was counted",
        (
            Table(
                "Every kind of release, and how often a site makes it.",
                (
                    Column("Release", share=1.3),
                    Column("Mechanism", share=3.6),
                    Column("Sampling rate q", is_number=True, share=1.0),
                    Column("Noise multiplier σ", is_number=True, share=1.1),
                    Column("Clip norm C", is_number=True, share=0.8),
                    Column("Sensitivity", is_number=True, share=1.1),
                    Column("Noise, std. dev.", is_number=True, share=0.9),
                    Column("Steps", is_number=True, share=0.8),
                ),
                tuple(_release_row(release) for release in privacy.releases),
            ),
            Facts(
                (
                    Fact("Sampler, as implemented", privacy.sampler, is_wide=True),
                    Fact("Noise, as implemented", privacy.noise, is_wide=True),
                    Fact("Floating point, as implemented", privacy.floating_point, is_wide=True),
                    Fact("Tuning", privacy.tuning, is_wide=True),
                )
            ),
            Table(
                "The site that spent most, counted in several ways. The statement uses the first; "
                "the others are checks.",
                (
                    Column("Accountant"),
                    Column("ε", is_number=True, share=0.6),
                    Column("Discretisation", share=2.4),
                    Column("Software", share=1.4),
                ),
                tuple(
                    Row(
                        (
                            Cell(figure.method),
                            Cell(numbers.epsilon(figure.epsilon)),
                            Cell(figure.discretisation),
                            Cell(figure.software),
                        )
                    )
                    for figure in privacy.accountants
                ),
            ),
        ),
    )


def _release_row(release: Release) -> Row:
    match release.event:
        case PoissonGaussianSteps() as event:
            rate = numbers.significant(event.sampling_rate)
            noise, steps = numbers.significant(event.noise_multiplier, 4), event.steps
        case GaussianRelease() as event:
            rate, noise, steps = "all", numbers.significant(event.noise_multiplier, 4), 1
        case NonPrivateRelease():
            rate, noise, steps = "all", "none", 1
    cells = (
        release.name,
        release.mechanism,
        rate,
        noise,
        numbers.significant(release.l2_clip_norm, 4),
        numbers.significant(release.l2_sensitivity, 4),
        numbers.significant(release.noise_stddev, 4),
        numbers.count(steps),
    )
    return Row(tuple(map(Cell, cells)))


def audit(privacy: LocalPrivacy) -> Section:
    """The empirical lower bound beside the claim, or the sentence that there is none."""
    title = "What an attack measured"
    found = privacy.audit
    if found is None:
        sentence = (
            "This report records no audit: no attack on the program is part of it. The figures "
            "above are proven bounds under the assumptions above, not measurements."
        )
        return Section("audit", title, (Paragraph(sentence),))
    bound = numbers.significant(found.epsilon_lower_bound)
    share = numbers.percent(found.confidence)
    return Section(
        "audit",
        title,
        (
            Paragraph(
                f"An attack on {numbers.count(found.canaries)} planted records, against the code "
                f"that trains with noise for ε = {numbers.epsilon(found.claimed_epsilon)}, shows "
                f"that ε is at least {bound}. A lower bound that stays below the claim is what "
                "sound code gives. It is evidence against mistakes in the code, and never a "
                "guarantee: a better attack may find more.",
            ),
            Facts(
                (
                    Fact("ε claimed", numbers.epsilon(found.claimed_epsilon), "upper bound"),
                    Fact("ε measured", bound, f"lower bound, {share} confidence"),
                    Fact("Canaries", numbers.count(found.canaries)),
                    Fact(
                        "Right guesses",
                        f"{numbers.count(found.right_guesses)} of {numbers.count(found.guesses)}",
                    ),
                    Fact("What was audited", found.gradient_path, is_wide=True),
                    Fact(
                        "Method",
                        "one-run audit (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846)",
                        is_wide=True,
                    ),
                )
            ),
        ),
    )
