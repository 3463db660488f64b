"""What is deployed runs commands that exist, one owner a ledger, and reaches nobody else.

Where kubectl is installed, it puts the overlays together; elsewhere each file is read as it
stands.
"""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from tacit_simulations.cli import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUSTOMIZE = DEPLOY / "kustomize"
COMPOSE = sorted(DEPLOY.glob("compose*.yaml"))
OVERLAYS = sorted(path.parent.name for path in KUSTOMIZE.glob("*/kustomization.yaml"))
POD_KINDS = ("Deployment", "Job")
KUBECTL = shutil.which("kubectl")

Manifest = dict[str, Any]


def named(path: Path) -> str:
    return path.name


def manifests() -> list[Manifest]:
    """Every Kubernetes object of ours, as it stands in its file."""
    files = [path for path in KUSTOMIZE.glob("*/*.yaml") if path.name != "kustomization.yaml"]
    return [found for path in sorted(files) for found in yaml.safe_load_all(path.read_text())]


def manifest(kind: str) -> Manifest:
    """The one object of a kind; a patch, which is a part of one, comes after it."""
    return next(found for found in manifests() if found["kind"] == kind)


def pod_of(kind: str) -> Manifest:
    pod: Manifest = manifest(kind)["spec"]["template"]["spec"]
    return pod


def parse(words: list[str]) -> None:
    """Parse what follows `tacit` as the command would, and do nothing else.

    Raises:
        click.UsageError: no such command, option or value, or an argument is missing.
    """
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command, info_name="tacit")
    while isinstance(command, click.Group):
        command.parse_args(context, words)
        name, found, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_context(context.info_name, words, parent=context.parent)


# --- compose ---------------------------------------------------------------------------


def test_compose_files_are_what_the_code_says_now() -> None:
    spec = importlib.util.spec_from_file_location("deploy_build", DEPLOY / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    built = build.compose_files()
    assert sorted(built) == COMPOSE
    for path, text in built.items():
        assert path.read_text() == text, f"run python deploy/build.py: {path.name} is stale"


@pytest.mark.parametrize("path", COMPOSE, ids=named)
def test_what_compose_runs_and_asks_are_commands(path: Path) -> None:
    (service,) = yaml.safe_load(path.read_text())["services"].values()
    parse(service["command"])
    asked = service["healthcheck"]["test"]
    assert asked[:2] == ["CMD", "tacit"]
    parse(asked[2:])


@pytest.mark.parametrize("path", COMPOSE, ids=named)
def test_every_variable_of_a_compose_file_is_set_in_its_first_lines(path: Path) -> None:
    text = path.read_text()
    opening = text[: text.index("\nname:")]
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert {"TACIT_FOLDER", "TACIT_USER"} <= required
    assert all(f"{name}=" in opening for name in required)


@pytest.mark.parametrize("path", COMPOSE, ids=named)
def test_a_compose_file_builds_from_a_dockerfile_that_takes_its_arguments(path: Path) -> None:
    (service,) = yaml.safe_load(path.read_text())["services"].values()
    build = service["build"]
    dockerfile = DEPLOY / build["context"] / build["dockerfile"]
    declared = re.findall(r"^ARG (\w+)", dockerfile.read_text(), re.MULTILINE)
    assert set(build["args"]) <= set(declared)
    assert service["image"] == f"tacit:{build['args']['VARIANT']}"


# --- Kubernetes ------------------------------------------------------------------------


def test_every_file_that_is_listed_exists_and_every_file_is_listed() -> None:
    listed = set()
    for kustomization in KUSTOMIZE.glob("*/kustomization.yaml"):
        found = yaml.safe_load(kustomization.read_text())
        names = [
            *found["resources"],
            *(patch["path"] for patch in found.get("patches", [])),
            *(env for made in found.get("configMapGenerator", []) for env in made["envs"]),
        ]
        listed |= {(kustomization.parent / name).resolve() for name in names}
    assert all(path.exists() for path in listed)
    present = {path for path in KUSTOMIZE.glob("*/*") if path.name != "kustomization.yaml"}
    assert present == {path for path in listed if path.is_file()}


def test_a_ledger_has_one_owner() -> None:
    deployment = manifest("Deployment")["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}
    assert manifest("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOncePod"]


@pytest.mark.parametrize("kind", POD_KINDS)
def test_a_pod_has_no_privilege(kind: str) -> None:
    pod = pod_of(kind)
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("kind", POD_KINDS)
def test_the_cluster_does_not_open_the_keys_to_a_group(kind: str) -> None:
    pod = pod_of(kind)
    # Otherwise the kubelet sets g+rw on every file at every start, keys included.
    assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    (folder,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "site"]
    args = pod["containers"][0]["args"]
    assert any(arg.startswith(f"{folder['mountPath']}/") for arg in args)  # below, not at, the root


@pytest.mark.parametrize("kind", POD_KINDS)
def test_a_pod_can_write_its_folder_and_nothing_else(kind: str) -> None:
    pod = pod_of(kind)
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert {name for name, mount in mounts.items() if not mount.get("readOnly")} == {"site", "tmp"}
    assert volumes["data"]["persistentVolumeClaim"]["readOnly"] is True
    assert "emptyDir" in volumes["tmp"]
    assert "hostPath" not in json.dumps(pod)


def test_no_key_stands_in_a_manifest() -> None:
    assert {found["kind"] for found in manifests()} == {
        "Namespace",
        "PersistentVolumeClaim",
        "NetworkPolicy",
        "Deployment",
        "Job",
    }
    secrets = [v["secret"] for kind in POD_KINDS for v in pod_of(kind)["volumes"] if "secret" in v]
    assert [secret["secretName"] for secret in secrets] == ["tacit-enrolment"]


def test_nobody_reaches_a_site_and_it_reaches_three() -> None:
    policy = manifest("NetworkPolicy")["spec"]
    assert policy["podSelector"] == {}
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert policy["ingress"] == []
    assert len(policy["egress"]) == 3
    for rule in policy["egress"]:
        assert rule["to"]
        assert all("port" in port for port in rule["ports"])
        for target in rule["to"]:
            if "ipBlock" in target:
                assert target["ipBlock"]["cidr"].endswith("/32")
            else:
                assert rule["ports"] == [
                    {"protocol": "UDP", "port": 53},
                    {"protocol": "TCP", "port": 53},
                ]


def test_probes_ask_where_the_site_answers() -> None:
    (container,) = pod_of("Deployment")["containers"]
    (port,) = [port["containerPort"] for port in container["ports"]]
    asked = {
        probe: container[probe]["grpc"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert {grpc["port"] for grpc in asked.values()} == {port}
    assert asked["livenessProbe"]["service"] == asked["startupProbe"]["service"] == "live"
    assert asked["readinessProbe"]["service"] == "ready"
    (init,) = pod_of("Job")["containers"]
    assert f"--health=0.0.0.0:{port}" in init["args"]


def settings() -> dict[str, str]:
    lines = (KUSTOMIZE / "enrol/site.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def args_of_the_job(values: dict[str, str]) -> list[str]:
    """What the container is given: Kubernetes puts `$(NAME)` in."""
    (container,) = pod_of("Job")["containers"]
    return [
        re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], arg) for arg in container["args"]
    ]


def test_what_a_pod_runs_is_a_command() -> None:
    (container,) = pod_of("Deployment")["containers"]
    parse(container["args"])
    filled = {
        "SITE_NAME": "north",
        "UNIT": "record",
        "EPSILON_CAP": "8",
        "DELTA": "1e-6",
        "DECLARED_UNITS": "1000",
    }
    assert set(filled) == set(settings())
    parse(args_of_the_job(filled))


def test_nothing_that_bears_on_privacy_has_a_default() -> None:
    assert set(settings().values()) == {""}
    with pytest.raises(click.UsageError):
        parse(args_of_the_job(settings()))


def test_a_site_with_a_gpu_asks_for_one_and_a_site_without_for_none() -> None:
    (container,) = pod_of("Deployment")["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    patch = yaml.safe_load((KUSTOMIZE / "cpu/without-gpu.yaml").read_text())
    assert patch["metadata"]["name"] == manifest("Deployment")["metadata"]["name"]
    (patched,) = patch["spec"]["template"]["spec"]["containers"]
    assert patched["name"] == container["name"]
    assert patched["resources"]["limits"] == {"nvidia.com/gpu": None}


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_can_be_put_together(overlay: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUSTOMIZE / overlay)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    assert {found["metadata"].get("namespace", "tacit") for found in made} == {"tacit"}
    has_gpu = "nvidia.com/gpu" in done.stdout
    assert has_gpu is (overlay == "base")
    images = set(re.findall(r"image: (\S+)", done.stdout))
    assert images == {"namespace": set(), "base": {"tacit:cuda"}}.get(overlay, {"tacit:cpu"})


# --- the page about it -----------------------------------------------------------------


def test_every_file_that_the_page_names_exists() -> None:
    page = (DEPLOY / "README.md").read_text()
    spans = [span for span in re.findall(r"`([^`\n]+)`", page) if re.search(r"[/.]", span)]
    files = [
        span for span in spans if re.fullmatch(r"[\w.-]+\.(yaml|env)|kustomize/[\w./-]+", span)
    ]
    assert len(files) >= 6
    for file in files:
        assert (DEPLOY / file).exists(), file
    for line in page.splitlines():
        if "--kustomize " in line:
            folder = shlex.split(line, comments=True)[-1]
            assert (ROOT / folder / "kustomization.yaml").exists(), line
