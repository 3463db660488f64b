"""What a policy says to what it refuses: which limit, what was asked, what is allowed.

The text stays at the site. What leaves is the code.
"""

from collections.abc import Iterator

from tacit_common.errors import RefusalCode, SiteRefusal


def above(what: str, asked: float, allowed: float, where: str) -> Iterator[SiteRefusal]:
    """A figure of the study that is larger than the policy's bound, which stands at `where`."""
    if asked > allowed:
        yield SiteRefusal(
            RefusalCode.POLICY,
            why=f"the study asks for {what} = {asked:g}, and the site allows {allowed:g}",
            fix=f"propose at most that, or raise {where} in the site's policy",
        )


def not_listed(what: str, listed: tuple[str, ...], where: str) -> SiteRefusal:
    """Something that is not in the policy's list at `where`."""
    return SiteRefusal(
        RefusalCode.POLICY,
        why=f"{what} is not allowed here; allowed are: {', '.join(listed) or 'none'}",
        fix=f"propose one of those, or add it to {where} in the site's policy",
    )


def too_little_noise(release: str, noise_multiplier: float, least: float) -> SiteRefusal:
    """A release that the study's own budget lets have less noise than the policy asks for."""
    return SiteRefusal(
        RefusalCode.POLICY,
        why=f"{release} has noise multiplier {noise_multiplier:g}, and the site asks for {least:g}",
        fix="propose a smaller ε, which asks for more noise, or lower "
        "study.smallest_noise_multiplier in the site's policy",
    )


def without_privacy() -> SiteRefusal:
    """Mode `none` where it is not allowed."""
    return SiteRefusal(
        RefusalCode.POLICY,
        why="the plan has no differential privacy and the site's policy asks for it",
        fix="propose a study with privacy.mode = 'local'",
    )


def other_unit(asked: str | None, kept: str) -> SiteRefusal:
    """Another unit of privacy than the site's."""
    return SiteRefusal(
        RefusalCode.POLICY,
        why=f"the study protects a {asked}, and the site's cap is for a {kept}",
        fix=f"propose a study with privacy.unit = '{kept}'",
    )
