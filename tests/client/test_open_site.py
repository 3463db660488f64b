"""A site opened from its folder: every encoder gets its shape, and the ledger sees one data set."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from tacit_client.budget import load
from tacit_client.deployment import open_site as module
from tacit_client.deployment.open_site import OpenSite, open_site
from tacit_client.deployment.site_data import (
    count_units,
    find_identity_channels,
    identity_source,
    open_data,
)
from tacit_client.deployment.site_folder import SiteFolder
from tacit_client.deployment.site_init import Prepared
from tacit_client.ledger import Ledger
from tacit_client.policy import SitePolicy
from tacit_common.data import LabeledDataSource
from tacit_common.errors import (
    DataError,
    LedgerError,
    PluginError,
    RefusalCode,
    SiteRefusal,
    UsageError,
)
from tacit_common.identity import Identity
from tacit_common.messages import (
    AccountRequest,
    DescribeRequest,
    SiteAccountReply,
    SiteDescription,
    TrainReply,
    TrainRequest,
)
from tacit_common.study import Study

NewSite = Callable[..., Prepared]
MakeStudy = Callable[..., Study]
SHAPES = {
    "small": (),
    "large": ("encoder.image_size=16",),
    "coloured": ("encoder.image_size=12", "encoder.channels=3"),
}


@pytest.fixture
def opened(new_site: NewSite) -> Iterator[Callable[..., OpenSite]]:
    """`opened(policy=…, labels=False)`: the site of a folder, which is made on first use."""
    with ExitStack() as stack:
        folders: list[SiteFolder] = []

        def make(**fields: object) -> OpenSite:
            if not folders:
                folders.append(new_site(**fields).folder)
            folder = SiteFolder.open(folders[0].path)
            return stack.enter_context(open_site(folder, folder.read_policy()))

        yield make


# --- shapes ------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", SHAPES.values(), ids=SHAPES)
def test_records_have_the_shape_that_the_studys_encoder_takes(
    opened: Callable[..., OpenSite], make_study: MakeStudy, overrides: tuple[str, ...]
) -> None:
    study = make_study(*overrides)
    plan = study.encoder
    assert plan.kind == "vit"
    record = opened().site_for(study).source[7]
    assert tuple(record.shape) == (plan.channels, plan.image_size, plan.image_size)


def test_a_charge_names_the_same_atoms_whatever_the_encoder(
    opened: Callable[..., OpenSite], make_study: MakeStudy
) -> None:
    site = opened()
    atoms = {site.site_for(make_study(*overrides)).atoms for overrides in SHAPES.values()}
    assert atoms == {("a0",)}
    assert [atom.atom for atom in site.ledger.atoms] == ["a0"]


def test_a_restart_with_another_encoder_finds_the_same_atoms(
    opened: Callable[..., OpenSite], make_study: MakeStudy
) -> None:
    first = opened()
    first.site_for(make_study())
    rows = first.head.seq
    first.close()
    again = opened()
    assert again.site_for(make_study(*SHAPES["coloured"])).atoms == ("a0",)
    assert again.head.seq == rows


def test_all_shapes_share_one_ledger_and_one_outbox(
    opened: Callable[..., OpenSite], make_study: MakeStudy
) -> None:
    site = opened()
    one, other = site.site_for(make_study()), site.site_for(make_study(*SHAPES["large"]))
    assert one is not other
    assert one.ledger is other.ledger
    assert one.outbox is other.outbox
    assert site.site_for(make_study()) is one


def test_records_that_come_while_the_agent_works_are_charged_from_the_next_shape_on(
    new_site: NewSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    draw = np.random.default_rng(1)

    def add(name: str) -> None:
        pixels = draw.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(images / name)

    for number in range(4):
        add(f"{number}.png")
    folder = new_site(data=str(images), declared_units=3).folder
    with open_site(folder, folder.read_policy()) as site:
        before = site.site_for(make_study())
        add("4.png")
        after = site.site_for(make_study(*SHAPES["large"]))
        assert (len(before.source), len(after.source)) == (4, 5)
        assert before.atoms == ("a0",)
        assert after.atoms == ("a0", "a1")


def test_data_that_changes_while_it_is_opened_is_refused(
    opened: Callable[..., OpenSite], make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = opened()
    fewer = open_data(site.config, image_size=8, channels=1)
    monkeypatch.setattr(type(fewer), "__len__", lambda _: 59)
    monkeypatch.setattr(module, "identity_source", lambda _: range(60))
    monkeypatch.setattr(OpenSite, "_bind", lambda *_: ("a0",))
    with pytest.raises(DataError, match="changed while it was opened"):
        site.site_for(make_study())


# --- policy ------------------------------------------------------------------------------


def test_nothing_is_opened_for_a_study_that_the_policy_refuses(
    opened: Callable[..., OpenSite], make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = SitePolicy.to_begin_with(unit="record", epsilon_cap=1.0, delta=1e-5)
    site = opened(policy=strict)
    reads: list[object] = []
    monkeypatch.setattr(module, "open_data", lambda *_, **__: reads.append(1))
    with pytest.raises(SiteRefusal) as refused:
        site.site_for(make_study("privacy.sampling_rate=0.9"))
    assert refused.value.code is RefusalCode.POLICY
    assert reads == []


def test_a_changed_policy_counts_for_shapes_that_are_open_already(
    opened: Callable[..., OpenSite], make_study: MakeStudy
) -> None:
    site, study = opened(), make_study()
    request = DescribeRequest(study)
    assert isinstance(site.site_for(study).answer(request), SiteDescription)
    strict = SitePolicy.to_begin_with(unit="record", epsilon_cap=1.0, delta=1e-5)
    site.use_policy(strict)
    with pytest.raises(SiteRefusal):
        site.site_for(study).answer(request)
    with pytest.raises(SiteRefusal):
        site.site_for(make_study(*SHAPES["large"]))


def test_consent_is_asked_where_the_policy_asks_for_it(
    opened: Callable[..., OpenSite], make_study: MakeStudy
) -> None:
    strict = SitePolicy.to_begin_with(unit="record", epsilon_cap=100.0, delta=1e-5)
    with pytest.raises(SiteRefusal) as refused:
        opened(policy=strict).site_for(make_study())
    assert refused.value.code is RefusalCode.APPROVAL


# --- work --------------------------------------------------------------------------------


def test_a_site_from_a_folder_trains_and_is_charged(
    opened: Callable[..., OpenSite],
    make_study: MakeStudy,
    train_request: Callable[..., TrainRequest],
) -> None:
    study, site = make_study(), opened()
    reply = site.site_for(study).answer(train_request(study))
    assert isinstance(reply, TrainReply)
    assert [charge.label for charge in site.ledger.charges] == ["round 1"]
    again = site.site_for(study).answer(train_request(study))
    assert isinstance(again, TrainReply)
    assert np.array_equal(again.update, reply.update)


def test_what_a_run_cost_is_told_without_opening_its_data(
    opened: Callable[..., OpenSite],
    make_study: MakeStudy,
    train_request: Callable[..., TrainRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site, study = opened(), make_study()
    site.site_for(study).answer(train_request(study))
    monkeypatch.setattr(module, "open_data", None)
    reply = site.without_records.answer(AccountRequest(run="run", study=make_study()))
    assert isinstance(reply, SiteAccountReply)


def test_labels_that_probes_may_not_use_are_not_there(opened: Callable[..., OpenSite]) -> None:
    config = opened(labels=False).config
    without = open_data(config, image_size=8, channels=1)
    named = open_data(config.model_copy(update={"labels": True}), image_size=8, channels=1)
    assert isinstance(named, LabeledDataSource)
    assert not isinstance(without, LabeledDataSource)
    assert torch.equal(without[3], named[3])
    assert without.unit_of(3) == named.unit_of(3)


def test_subjects_are_units_in_every_shape(opened: Callable[..., OpenSite]) -> None:
    config = opened(subjects={"by": "column", "column": "patient"}).config
    for size in (8, 16):
        source = open_data(config, image_size=size, channels=1)
        assert count_units(source, "subject") == 20
        assert count_units(source, "record") == 60


# --- what cannot be opened ---------------------------------------------------------------


def test_a_folder_with_another_sites_ledger_is_refused(new_site: NewSite) -> None:
    one, other = new_site("one").folder, new_site("other").folder
    one.ledger.unlink()
    other.ledger.rename(one.ledger)
    with pytest.raises(LedgerError, match="not that of site 'one'"):
        open_site(one, one.read_policy())


def test_data_that_is_gone_is_an_error_and_closes_the_ledger(
    new_site: NewSite, data_file: Path
) -> None:
    folder = new_site().folder
    data_file.unlink()
    with pytest.raises(DataError, match="no such file"):
        open_site(folder, folder.read_policy())
    assert load(folder.path)[0].head.seq == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(new_site: NewSite) -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        new_site(device="cuda")


# --- the form that the ledger knows ------------------------------------------------------


class OneChannelOnly:
    """A plug-in data set that knows no colours."""

    def __init__(self, image_size: int, channels: int) -> None:
        if channels != 1:
            raise ValueError("grey only")
        self._record = torch.zeros(channels, image_size, image_size)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._record + index / 2

    def unit_of(self, index: int) -> int:
        return index


@pytest.fixture
def grey_plugin(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A `[plugins]` table that names `OneChannelOnly`."""
    package = ModuleType("a_data_set_of_somebody")
    package.__dict__["Source"] = OneChannelOnly
    monkeypatch.setitem(sys.modules, package.__name__, package)
    return {"grey": f"{package.__name__}:Source"}


def test_a_plugin_is_known_in_the_channels_that_it_can_give(
    new_site: NewSite, grey_plugin: dict[str, str]
) -> None:
    config = new_site(data="grey", plugins=grey_plugin, declared_units=2).folder.config
    assert find_identity_channels(config) == 1


def test_a_plugin_that_fails_shows_only_the_type_of_its_error(
    new_site: NewSite, grey_plugin: dict[str, str]
) -> None:
    config = new_site(data="grey", plugins=grey_plugin, declared_units=2).folder.config
    with pytest.raises(PluginError, match="raises ValueError") as failed:
        identity_source(config)
    assert "grey only" not in str(failed.value)


# --- data that changes -------------------------------------------------------------------


def test_records_that_are_added_under_a_site_at_work_are_charged(
    opened: Callable[..., OpenSite],
    make_study: MakeStudy,
    train_request: Callable[..., TrainRequest],
    data_file: Path,
) -> None:
    """Else a site that is never restarted trains on what its ledger does not know."""
    site, study = opened(), make_study()
    site.site_for(study).answer(train_request(study))
    kept = site.site_for(study)
    assert site.site_for(study) is kept
    images = np.random.default_rng(1).integers(0, 256, (70, 8, 8), dtype=np.uint8)
    with np.load(data_file) as before:
        images[:60] = before["images"]
    np.savez(data_file, images=images, labels=np.arange(70) % 10, patient=np.arange(70) // 3)
    changed = site.site_for(study)
    assert len(changed.source) == 70
    assert changed.atoms != kept.atoms
    changed.answer(train_request(study, round=2))
    first, second = site.ledger.charges
    touched = site.ledger.spend.touched
    assert set(touched(first)) < set(touched(second))


# --- the ledger --------------------------------------------------------------------------


def test_a_ledger_that_was_deleted_or_emptied_is_not_begun_anew(new_site: NewSite) -> None:
    """Else deleting one file gives the whole budget back."""
    folder = new_site().folder
    folder.ledger.write_bytes(b"")
    with pytest.raises(LedgerError, match="is missing"):
        open_site(folder, folder.read_policy())
    folder.ledger.unlink()
    with pytest.raises(LedgerError, match="is missing"):
        open_site(folder, folder.read_policy())
    assert not folder.ledger.exists()


def test_a_ledger_is_its_owners_alone_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ledger = Ledger(tmp_path / "ledger.db", site="site", identity=Identity.create())
        modes = {path.stat().st_mode & 0o777 for path in tmp_path.glob("ledger.db*")}
    finally:
        os.umask(before)
    ledger.close()
    assert modes == {0o600}


def test_a_site_that_declares_more_than_it_has_does_not_open(
    new_site: Callable[..., Prepared],
) -> None:
    folder = new_site("clinic").folder
    declared = f"declared_units = {folder.config.declared_units}"
    text = folder.site_toml.read_text()
    assert declared in text
    folder.site_toml.write_text(text.replace(declared, "declared_units = 5000"))
    with pytest.raises(UsageError, match="5000 declared units are more than there are"):
        open_site(folder, folder.read_policy())
