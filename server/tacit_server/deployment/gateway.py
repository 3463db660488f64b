"""The gateway process: the only part of a coordinator that is reachable from outside.

`python -m tacit_server.deployment.gateway DIR`, as the supervisor starts it.
"""

import logging
import resource
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path

from tacit_common.cli import run_command
from tacit_common.errors import IdentityError, TacitError
from tacit_server.deployment.fleet_proxy import FleetProxy
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.listener import Certificate, Listener
from tacit_server.deployment.loopback import to_superlink
from tacit_server.deployment.roster import Roster

_MEGABYTE = 1_000_000
_MOST_FILES = 65_536


def main() -> None:
    """Serve the folder named on the command line until SIGTERM."""
    sys.exit(run_command(lambda: serve(ServerFolder.open(Path(sys.argv[1])))))


def serve(folder: ServerFolder) -> None:
    """Listen at the configured address, and pass on what enrolled sites may ask.

    Raises:
        TacitError: the address is taken, or the certificates cannot be used.
    """
    config = folder.config()
    _allow_many_files()
    # Each refusal is one line of ours; uvicorn would add others, without saying whose it was.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    try:
        certificate = Certificate(folder.server_certificate, folder.server_key)
        upstream = to_superlink(config.superlink_port, folder.ca_certificate)
    except OSError as error:  # ssl.SSLError is one
        raise IdentityError(
            "the gateway's certificate cannot be used",
            why=error.strerror or type(error).__name__,
            fix=f"make it anew: tacit server renew {folder.path}",
        ) from None
    proxy = FleetProxy(
        upstream=upstream,
        is_enrolled=Roster(folder.roster).is_enrolled,
        largest_body=config.largest_message_mb * _MEGABYTE,
        refused=_say,
    )
    Listener(proxy, certificate, say=_say).run([bound(config.listen)])


def bound(address: str) -> socket.socket:
    """A socket bound to `host:port`.

    Raises:
        TacitError: it is taken, or not an address of this machine.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        return socket.create_server(
            (host, int(port)),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=256,
        )
    except OSError as error:
        raise TacitError(
            f"the gateway cannot listen at {address}",
            why=error.strerror or type(error).__name__,
            fix="end what uses the port, or change 'listen' in server.toml",
        ) from None


def _allow_many_files() -> None:
    """Strangers should not be able to use up the files that this process may open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _say(line: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}", flush=True)


if __name__ == "__main__":
    main()
