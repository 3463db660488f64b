"""An encoder's hash is that of its architecture: any change of it gives another."""

from collections.abc import Callable

import pytest

from tacit_common.architecture import encoder_sha256
from tacit_common.study import Study

MakeStudy = Callable[..., Study]

PLUGIN = 'encoder={ kind = "plugin", name = "mine", options = { width = 8, deep = true } }'


def hash_of(study: Study) -> str:
    return encoder_sha256(study.encoder)


def test_the_hash_does_not_change_from_version_to_version(make_study: MakeStudy) -> None:
    """Operators have it in their policies: another value would lock their coordinators out."""
    assert hash_of(make_study()) == (
        "386a69322d70359616df7c925269bdab0dfc544cf6c7118631a6adfe09942b56"
    )


def test_the_hash_is_of_the_encoder_alone(make_study: MakeStudy) -> None:
    assert hash_of(make_study("seed=9", "federation.rounds=9")) == hash_of(make_study())


def test_a_default_that_is_written_out_is_the_same_architecture(make_study: MakeStudy) -> None:
    assert hash_of(make_study("encoder.mlp_ratio=4")) == hash_of(make_study())


@pytest.mark.parametrize(
    "change",
    [
        "image_size=16",
        "channels=3",
        "patch_size=2",
        "width=32",
        "depth=2",
        "heads=4",
        "mlp_ratio=2.0",
    ],
)
def test_any_change_is_another_architecture(make_study: MakeStudy, change: str) -> None:
    assert hash_of(make_study(f"encoder.{change}")) != hash_of(make_study())


@pytest.mark.parametrize("change", ['name = "yours"', "width = 9", "deep = false"])
def test_a_plug_ins_hash_covers_its_name_and_options(make_study: MakeStudy, change: str) -> None:
    field = change.partition(" = ")[0]
    other = {"name": 'name = "mine"', "width": "width = 8", "deep": "deep = true"}[field]
    assert hash_of(make_study(PLUGIN.replace(other, change))) != hash_of(make_study(PLUGIN))


def test_the_order_of_options_makes_no_difference(make_study: MakeStudy) -> None:
    swapped = PLUGIN.replace("width = 8, deep = true", "deep = true, width = 8")
    assert hash_of(make_study(swapped)) == hash_of(make_study(PLUGIN))
