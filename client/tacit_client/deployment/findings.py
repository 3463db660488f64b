"""One line of `tacit site doctor`."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field


class Finding(BaseModel):
    """What one check found, and how to mend it where it needs mending."""

    model_config = ConfigDict(frozen=True)

    level: Literal["ok", "warn", "fail"]
    check: str
    what: str
    fix: str | None = Field(default=None, description="None where nothing needs mending.")

    @classmethod
    def ok(cls, check: str, what: str) -> Self:
        """As it should be."""
        return cls(level="ok", check=check, what=what)

    @classmethod
    def warn(cls, check: str, what: str, fix: str) -> Self:
        """The site works, but somebody should know."""
        return cls(level="warn", check=check, what=what, fix=fix)

    @classmethod
    def fail(cls, check: str, what: str, fix: str) -> Self:
        """The site cannot work so."""
        return cls(level="fail", check=check, what=what, fix=fix)
