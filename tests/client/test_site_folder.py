"""The site's folder and its configuration: what is wrong is said, and secrets stay secret."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tacit_client.deployment.site_config import OPENING, SiteConfig
from tacit_client.deployment.site_folder import SiteFolder
from tacit_client.deployment.site_init import Prepared
from tacit_common.errors import IdentityError, UsageError
from tacit_common.toml_file import write_toml_file

NewSite = Callable[..., Prepared]


def edited(folder: SiteFolder, old: str, new: str) -> None:
    text = folder.site_toml.read_text(encoding="utf-8")
    assert old in text
    folder.site_toml.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"subjects": {"by": "column", "column": "patient"}},
        {"subjects": {"by": "folder", "level": 2}, "class_names": ["a", "b"]},
        {"plugins": {"mine": "package:thing"}, "data": "mine", "device": "cpu"},
        {
            "witness": {"address": "w.example:1", "public_key": "a" * 64},
            "health_address": "[::1]:9",
        },
    ],
)
def test_a_configuration_is_read_back_as_it_was_written(
    new_site: NewSite, tmp_path: Path, fields: dict[str, object]
) -> None:
    config = new_site().folder.config
    changed = SiteConfig.model_validate({**config.model_dump(), **fields})
    folder = SiteFolder(tmp_path / "other")
    folder.path.mkdir()
    write_toml_file(folder.site_toml, changed, opening=OPENING)
    assert folder.config == changed


def test_a_misspelt_field_is_named_with_the_nearest_valid_one(new_site: NewSite) -> None:
    folder = new_site().folder
    edited(folder, "physical_batch =", "phisical_batch =")
    with pytest.raises(UsageError, match="did you mean 'physical_batch'"):
        _ = folder.config


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('data = "/', 'data = "', "must begin|from '/' on"),
        ("declared_units = 50", "declared_units = 0", "declared_units"),
        ("127.0.0.1:9", "127.0.0.1:99999", "port"),
        ('site = "clinic"', 'site = "../clinic"', "site"),
        ("\n[plugins]\n", '\n[subjects]\nby = "blocks"\nsize = 3\n[plugins]\n', "none of"),
    ],
)
def test_a_wrong_value_is_refused(new_site: NewSite, old: str, new: str, why: str) -> None:
    folder = new_site().folder
    edited(folder, old, new)
    with pytest.raises(UsageError, match=why):
        _ = folder.config


def test_subjects_of_a_plugin_are_its_own_to_name(new_site: NewSite) -> None:
    with pytest.raises(ValueError, match="unit_of"):
        new_site(data="mine", plugins={"mine": "a:b"}, subjects={"by": "column", "column": "p"})


def test_a_folder_without_a_site_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tacit site init"):
        SiteFolder.open(tmp_path)


@pytest.mark.parametrize("secret", ["identity_key", "node_key", "ledger", "witness_key", "path"])
def test_a_secret_that_others_may_use_is_refused(new_site: NewSite, secret: str) -> None:
    folder = new_site().folder
    path: Path = getattr(folder, secret)
    path.chmod(0o755 if path.is_dir() else 0o644)
    with pytest.raises(IdentityError, match=r"chmod [67]00"):
        SiteFolder.open(folder.path)


def test_a_lost_identity_is_not_made_anew(new_site: NewSite) -> None:
    folder = new_site().folder
    folder.identity_key.unlink()
    with pytest.raises(IdentityError, match="is missing"):
        folder.read_identity()
    assert not folder.identity_key.exists()


@pytest.mark.parametrize("content", [b"", b"not a key", b"-----BEGIN OPENSSH PRIVATE KEY-----\n"])
def test_a_damaged_node_key_is_refused(new_site: NewSite, content: bytes) -> None:
    folder = new_site().folder
    folder.node_key.write_bytes(content)
    with pytest.raises(IdentityError, match="not a node's key"):
        folder.read_node_key()


def test_a_node_key_on_another_curve_is_refused(new_site: NewSite) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = new_site().folder
    key = ec.generate_private_key(ec.SECP256R1())
    folder.node_key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(IdentityError, match="not a node's key"):
        folder.read_node_key()


def test_a_site_without_a_witness_has_none(new_site: NewSite) -> None:
    assert new_site().folder.open_witness() is None


def test_a_witness_without_its_certificate_is_an_error(new_site: NewSite) -> None:
    folder = new_site(witness={"address": "w.example:1", "public_key": "a" * 64}).folder
    with pytest.raises(IdentityError, match=r"ca\.crt"):
        folder.open_witness()
