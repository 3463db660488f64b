"""Writes deploy/compose.*.yaml, which follow from the code: `python deploy/build.py`.

They are for whoever has Tacit in containers only. Where it is installed, `tacit server init`
and its siblings write a compose file of their own, from the same template. A test builds
these again and compares.
"""

from pathlib import Path

from tacit_common.service_files import Mount, Role, Variable, render_compose

DEPLOY = Path(__file__).parent

_FOLDER = Mount(Variable("TACIT_FOLDER", meaning="a folder, empty at first"), "/tacit")
_DATA = Mount(Variable("TACIT_DATA", meaning="the records of the site"), "/data", read_only=True)
_USER = Variable("TACIT_USER", meaning="owner of TACIT_FOLDER, as UID:GID")


def compose_files() -> dict[Path, str]:
    """Every compose file and its text."""
    return {
        DEPLOY / "compose.server.yaml": _compose(
            "server",
            file="compose.server.yaml",
            variables="TACIT_FOLDER=$PWD/hub TACIT_USER=$(id -u):$(id -g)",
            init="server init /tacit --name NAME --address HOST:9443",
            mounts=[_FOLDER],
            health_address="127.0.0.1:9444",
            listen="0.0.0.0:9443",
        ),
        **{
            DEPLOY / file: _compose(
                "site",
                file=file,
                variables="TACIT_FOLDER=$PWD/site TACIT_DATA=/records TACIT_USER=$(id -u):$(id -g)",
                init="site init /tacit --data /data --health 127.0.0.1:9445 …",
                mounts=[_FOLDER, _DATA],
                health_address="127.0.0.1:9445",
                gpu=gpu,
            )
            for file, gpu in (("compose.site.yaml", False), ("compose.site.gpu.yaml", True))
        },
    }


def _compose(
    role: Role,
    *,
    file: str,
    variables: str,
    init: str,
    mounts: list[Mount],
    health_address: str,
    listen: str | None = None,
    gpu: bool = False,
) -> str:
    compose = f"docker compose --file deploy/{file}"
    return render_compose(
        role,
        project=f"tacit-{role}",
        usage=[
            f"export {variables}",
            f"{compose} build",
            f"{compose} run --rm {role} {init}",
            f"{compose} up --detach",
        ],
        folder=_FOLDER.target,
        mounts=mounts,
        user=_USER,
        health_address=health_address,
        listen=listen,
        gpu=gpu,
        build_from="..",
    )


if __name__ == "__main__":
    for path, text in compose_files().items():
        path.write_text(text, encoding="utf-8")
