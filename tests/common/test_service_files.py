"""The service files hold what runs under them to its folder, and nothing typed can change that."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tacit_common.errors import UsageError
from tacit_common.service_files import Role, service_files, write_service_files

ROLES = get_args(Role)
MakeFiles = Callable[..., dict[str, str]]

SYSTEMD = shutil.which("systemd-analyze")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to serve, and an installed `tacit` beside the Python that runs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "tacit").write_text("#!/bin/sh\n")
    (programs / "tacit").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    served = tmp_path / "served"
    served.mkdir()
    return served


@pytest.fixture
def files(folder: Path) -> MakeFiles:
    """`files("site", gpu=True, …)`: both files of a role."""

    def make(role: Role, place: Path = folder, **changed: Any) -> dict[str, str]:
        options: dict[str, Any] = {"name": "north", "health_address": "127.0.0.1:9445"}
        return service_files(role, place, **(options | changed))

    return make


def settings(unit: str) -> dict[str, list[str]]:
    """Every setting of a unit and its values, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def unit_of(made: dict[str, str]) -> dict[str, list[str]]:
    return settings(next(text for name, text in made.items() if name.endswith(".service")))


def service_of(made: dict[str, str]) -> dict[str, Any]:
    (service,) = yaml.safe_load(made["compose.yaml"])["services"].values()
    return dict(service)


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_can_write_nothing_but_its_folder(
    role: Role, files: MakeFiles, folder: Path
) -> None:
    unit = unit_of(files(role))
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["ProtectHome"] == ["read-only"]
    assert unit["PrivateTmp"] == ["yes"]
    assert unit["ReadWritePaths"] == [f'"{folder}"']
    assert unit["UMask"] == ["0077"]


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_gains_no_privilege(role: Role, files: MakeFiles) -> None:
    unit = unit_of(files(role))
    assert unit["NoNewPrivileges"] == ["yes"]
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == [""]
    assert unit["RestrictAddressFamilies"] == ["AF_INET AF_INET6 AF_UNIX"]
    assert unit["SystemCallFilter"] == ["@system-service"]


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_runs_the_installed_command_as_the_owner(
    role: Role, files: MakeFiles, folder: Path
) -> None:
    unit = unit_of(files(role))
    tacit = folder.parent / "bin/tacit"
    assert unit["ExecStart"] == [f'"{tacit}" "{role}" "run" "{folder}"']
    assert unit["User"] == [folder.owner()]


def test_a_site_waits_until_flower_takes_it_back(files: MakeFiles) -> None:
    unit = unit_of(files("site"))
    assert unit["Restart"] == ["on-failure"]
    assert unit["RestartSec"] == ["15"]
    assert unit["RestartPreventExitStatus"] == ["2"]  # a wrong configuration stays wrong
    assert unit["StartLimitIntervalSec"] == ["0"]


def test_a_server_is_back_before_flower_gives_its_runs_up(files: MakeFiles) -> None:
    assert int(unit_of(files("server"))["RestartSec"][0]) < 60


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("where", ["unit", "compose"])
def test_nothing_that_is_started_calls_home(role: Role, where: str, files: MakeFiles) -> None:
    made = files(role)
    if where == "unit":
        variables = unit_of(made)["Environment"]
    else:
        variables = [f"{name}={value}" for name, value in service_of(made)["environment"].items()]
    assert {
        "FLWR_TELEMETRY_ENABLED=0",
        "FLWR_DISABLE_UPDATE_CHECK=1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1",
        "HF_HUB_OFFLINE=1",
    } <= set(variables)


def test_data_is_only_read(files: MakeFiles, tmp_path: Path) -> None:
    data = tmp_path / "records"
    made = files("site", data=[data])
    assert unit_of(made)["ReadOnlyPaths"] == [f'"{data}"']
    folder, records = service_of(made)["volumes"]
    assert records["source"] == records["target"] == str(data)
    assert records["read_only"] is True
    assert "read_only" not in folder


def test_data_behind_a_link_has_the_path_by_which_the_site_names_it(
    files: MakeFiles, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    link = tmp_path / "records"
    link.symlink_to("store")
    _, records = service_of(files("site", data=[link]))["volumes"]
    assert records["target"] == str(link)


@pytest.mark.parametrize("gpu", [False, True])
def test_only_a_site_with_a_gpu_sees_devices(gpu: bool, files: MakeFiles) -> None:
    made = files("site", gpu=gpu)
    unit, service = unit_of(made), service_of(made)
    assert ("PrivateDevices" in unit) is not gpu
    assert ("DeviceAllow" in unit) is gpu
    assert ("deploy" in service) is gpu
    assert service["image"] == ("tacit:cuda" if gpu else "tacit:cpu")
    if gpu:
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


@pytest.mark.parametrize("role", ROLES)
def test_a_container_can_write_nothing_but_its_folder(
    role: Role, files: MakeFiles, folder: Path
) -> None:
    service = service_of(files(role))
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "cap_add" not in service
    assert "network_mode" not in service
    assert service["user"] == f"{folder.stat().st_uid}:{folder.stat().st_gid}"
    (volume,) = service["volumes"]
    assert volume["source"] == volume["target"] == str(folder)


def test_a_site_in_a_container_has_no_port(files: MakeFiles) -> None:
    assert "ports" not in service_of(files("site"))
    assert service_of(files("server", listen="0.0.0.0:9443"))["ports"] == ["9443:9443"]


def test_a_low_port_needs_one_capability_and_no_other(files: MakeFiles) -> None:
    made = files("server", listen="0.0.0.0:443")
    unit = unit_of(made)
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == ["CAP_NET_BIND_SERVICE"]
    assert service_of(made)["sysctls"] == {"net.ipv4.ip_unprivileged_port_start": 443}
    assert service_of(made)["cap_drop"] == ["ALL"]


def test_a_container_says_how_it_is_where_there_is_something_to_ask(files: MakeFiles) -> None:
    asked = service_of(files("site", health_address="127.0.0.1:9445"))["healthcheck"]["test"]
    assert asked == ["CMD", "tacit", "health", "127.0.0.1:9445"]
    assert "healthcheck" not in service_of(files("site", health_address=None))


def test_a_path_with_spaces_percents_and_dollars_stays_one_path(
    files: MakeFiles, tmp_path: Path
) -> None:
    odd = tmp_path / "a b%h ${HOME}"
    odd.mkdir()
    made = files("server", odd)
    unit = unit_of(made)
    assert unit["WorkingDirectory"] == [str(odd).replace("%", "%%")]
    assert unit["ReadWritePaths"] == ['"' + str(odd).replace("%", "%%") + '"']
    last_word = '"' + str(odd).replace("%", "%%").replace("$", "$$") + '"'
    assert unit["ExecStart"][0].endswith(last_word)
    # Compose takes `$$` for `$`.
    assert service_of(made)["volumes"][0]["source"].replace("$$", "$") == str(odd)
    assert "${" not in service_of(made)["volumes"][0]["source"].replace("$$", "")


@pytest.mark.parametrize(
    "smuggled", ["x\nUser=root", 'x" "y', "x\\n", "a:b", "x\r", "x'y", "x\x1b[0m", "x\u2028y"]
)
def test_a_path_cannot_smuggle_in_a_setting(
    smuggled: str, files: MakeFiles, tmp_path: Path
) -> None:
    place = tmp_path / smuggled
    place.mkdir()
    with pytest.raises(UsageError, match="no service file can be written"):
        files("server", place)
    with pytest.raises(UsageError, match="no service file can be written"):
        files("site", data=[place])


def test_a_name_cannot_smuggle_in_a_setting(files: MakeFiles) -> None:
    with pytest.raises(UsageError, match="no service file can be written"):
        files("site", name="x\nUser=root")


def test_written_files_are_what_was_made(files: MakeFiles, tmp_path: Path) -> None:
    made = files("witness")
    write_service_files(tmp_path / "service", made)
    read = {path.name: path.read_text() for path in (tmp_path / "service").iterdir()}
    assert read == made
    assert set(read) == {"tacit-witness.service", "compose.yaml"}


@pytest.mark.skipif(SYSTEMD is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("role", ROLES)
def test_systemd_finds_no_fault(role: Role, gpu: bool, files: MakeFiles, tmp_path: Path) -> None:
    write_service_files(tmp_path, files(role, gpu=gpu, listen="0.0.0.0:443", data=[tmp_path]))
    unit = tmp_path / f"tacit-{role}.service"
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(SYSTEMD is None, reason="systemd-analyze is not installed")
def test_systemd_would_notice_a_fault(files: MakeFiles, tmp_path: Path) -> None:
    unit = tmp_path / "tacit-site.service"
    unit.write_text(files("site")["tacit-site.service"].replace("UMask=", "UMaks="))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "UMaks" in done.stderr
