"""A file that a person writes: sections after plain values, and back as it was."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from tacit_common.errors import UsageError
from tacit_common.toml_file import commented_toml, read_toml_file, write_toml_file


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cat(_Strict):
    """An animal that purrs.

    Not shown in a file.
    """

    kind: Literal["cat"]
    lives: int = Field(description="How often it may fall.", examples=[9])


class Dog(_Strict):
    """An animal that barks."""

    kind: Literal["dog"]


class House(_Strict):
    """Where animals live."""

    free: dict[str, str] = Field(default_factory=dict, description="Anything.")
    cat: Cat
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    names: list[str] = Field(default=[], description="What they are called.")
    size: float | None = Field(default=None, description="In square metres.", examples=[12.5])


CAT = Cat(kind="cat", lives=7)
HOUSES = [
    House(cat=CAT),
    House(cat=CAT, free={"a b": "c"}, pet=Dog(kind="dog"), names=['say "hi"', "β"], size=3.0),
    House(cat=CAT, names=[f"{'long' * 10}{n}" for n in range(5)]),
]


@pytest.mark.parametrize("house", HOUSES, ids=["empty", "full", "long"])
def test_what_is_written_is_read_back(tmp_path: Path, house: House) -> None:
    path = tmp_path / "house.toml"
    write_toml_file(path, house, opening="A house.")
    assert read_toml_file(path, House, what="the house", fix="mend it") == house
    assert path.read_text(encoding="utf-8").startswith("# A house.\n")


def test_what_is_left_out_is_a_comment() -> None:
    text = commented_toml(HOUSES[0])
    assert "# In square metres.\n# size = 12.5\n" in text
    assert "# [pet]\n# An animal that purrs.\n" in text
    assert "# How often it may fall.\n# lives = 9\n" in text
    assert "Not shown" not in text
    assert set(tomllib.loads(text)) == {"cat", "free", "names"}


def test_a_wrong_file_names_every_wrong_field(tmp_path: Path) -> None:
    path = tmp_path / "house.toml"
    path.write_text('nams = []\n[cat]\nkind = "cat"\n[pet]\nkind = "dgo"\n', encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        read_toml_file(path, House, what="the house", fix="mend it")
    assert raised.value.what == f"the house '{path}' has 3 wrong fields"
    assert set(raised.value.why.splitlines()) == {
        "'nams' is not a field; did you mean 'names'?",
        "'cat.lives' is missing: it has no default",
        "'pet' is 'dgo', which is none of 'cat', 'dog'; did you mean 'dog'?",
    }
    assert raised.value.fix == "mend it"
