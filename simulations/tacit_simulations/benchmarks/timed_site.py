"""`tacit site run DIR`, with a stopwatch on its training.

    python -m tacit_simulations.benchmarks.timed_site DIR TIMES

Writes a line for each time that it trained: begin and end, in seconds since 1970.
"""

import sys
import time
from pathlib import Path

from tacit_client.site import Site
from tacit_common.messages import TrainReply, TrainRequest
from tacit_simulations.cli import main


def _watch_training(times: Path) -> None:
    train = Site._train

    def timed(site: Site, request: TrainRequest) -> TrainReply:
        began = time.time()
        reply = train(site, request)
        with times.open("a", encoding="utf-8") as file:
            file.write(f"{began!r} {time.time()!r}\n")
        return reply

    setattr(Site, "_train", timed)  # noqa: B010 - a method is not assigned otherwise


if __name__ == "__main__":
    folder, times = sys.argv[1:]
    _watch_training(Path(times))
    sys.argv = ["tacit", "site", "run", folder]
    main()
