"""The benchmarks work at their smallest; how fast anything is, is not tested."""

import json
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from tacit_common.errors import TacitError, UsageError
from tacit_simulations.benchmarks import (
    Figure,
    Record,
    ledger,
    local_step,
    noise,
    profile,
    round_overhead,
    scaling,
    startup,
)
from tacit_simulations.benchmarks import (
    __main__ as command,
)
from tacit_simulations.benchmarks.measure import Stages, Track, in_fresh_process
from tacit_simulations.benchmarks.record import new_record, summarise
from tacit_simulations.benchmarks.studies import Mode

SMALLEST: dict[str, Callable[[Track], list[Figure]]] = {
    "startup": partial(startup.measure, startup.Plan(imports=1, starts=1)),
    "local_step": partial(local_step.measure, local_step.Plan(("0.2M",), (4,), 1)),
    "ledger": partial(
        ledger.measure, ledger.Plan(requests=3, reserves=5, opens=1, groups=2, records=4)
    ),
    "noise": partial(noise.measure, noise.Plan(draws=1000, repetitions=2)),
    "round_overhead": partial(
        round_overhead.measure,
        round_overhead.Plan(
            "0.2M",
            tuple(round_overhead.Case("in-process", 2, mode, 1) for mode in ("local", "none")),
        ),
    ),
    "round_overhead on Ray": partial(
        round_overhead.measure,
        round_overhead.Plan("0.2M", (round_overhead.Case("ray", 2, "none", 1),)),
    ),
    "profile": partial(profile.measure, profile.Plan(("digits",), 1)),
    "scaling": partial(
        scaling.measure,
        scaling.Plan(
            (
                scaling.sites_curve({2: 1, 4: 1}, asked=3),
                scaling.parameters_curve({"0.1M": 1}),
                scaling.records_curve({20: 1}),
            )
        ),
    ),
}


class Nested:
    """Something to watch: each part sleeps 20 ms, `inner` inside `outer`."""

    def outer(self) -> None:
        time.sleep(0.02)
        self.inner()

    def inner(self) -> None:
        time.sleep(0.02)

    @property
    def looked_up(self) -> int:
        time.sleep(0.02)
        return 1

    def items(self) -> Iterator[int]:
        time.sleep(0.02)
        yield 1


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def a_record(*figures: Figure) -> Record:
    return new_record("example", "python -m example", figures, load_before=0.5)


def test_result_file_reads_back_and_names_no_host(tmp_path: Path) -> None:
    record = a_record(*summarise("step", [3.0, 1.0, 2.0], "ms", "batch 64", target=1.5))
    text = record.write(tmp_path).read_text()
    assert Record.model_validate_json(text) == record
    assert platform.node() not in text
    figures = json.loads(text)["figures"]
    assert [
        (f["name"], f["value"], f["unit"], f["statistic"], f["condition"]) for f in figures
    ] == [
        ("step", 1.0, "ms", "minimum of 3", "batch 64"),
        ("step", 2.0, "ms", "median of 3", "batch 64"),
    ]


def test_target_is_held_against_the_median_not_the_minimum() -> None:
    minimum, median = summarise("step", [1.0, 2.0, 3.0], "ms", "", target=1.5)
    assert minimum.met is None
    assert median.met is False
    assert summarise("step", [1.0], "ms", "", target=1.5)[1].met is True


def test_stages_split_the_whole_time_and_count_no_time_twice() -> None:
    nested = Nested()
    with Stages() as stages:
        stages.watch("outer", Nested, "outer")
        stages.watch("inner", Nested, "inner")
        stages.watch("property", Nested, "looked_up")
        stages.watch("items", Nested, "items")
        stages.take()
        started = time.perf_counter()
        nested.outer()
        assert nested.looked_up == 1
        for _ in nested.items():
            time.sleep(0.02)  # the caller's own time, not the generator's
        split = stages.take()
        whole = time.perf_counter() - started
    assert sum(split.values()) == pytest.approx(whole, abs=5e-3)
    for stage in ("outer", "inner", "property", "items", Stages.REST):
        assert split[stage] == pytest.approx(whole / 5, rel=0.5), stage


def test_stages_put_back_what_they_watched() -> None:
    before = dict(vars(Nested))
    with Stages() as stages:
        stages.watch("inner", Nested, "inner", "looked_up")
        assert vars(Nested)["inner"] is not before["inner"]
    assert dict(vars(Nested)) == before


@pytest.mark.slow
@pytest.mark.usefixtures("_threads")
def test_local_step_measures_both_kinds_and_every_stage(tmp_path: Path) -> None:
    samples = local_step.step_times("0.2M", 4, 2, str(tmp_path))
    assert len(samples["DP"]) == len(samples["without DP"]) == 2
    stages = {name: values for name, values in samples.items() if name.startswith("stage ")}
    assert {f"stage {name}" for name in ("forward", "backward", "noise", "rest")} <= set(stages)
    for step, *parts in zip(samples["DP"], *stages.values(), strict=True):
        assert step > 0
        assert sum(parts) == pytest.approx(step, rel=0.05)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("mode", ["local", "none"])
def test_round_overhead_accounts_for_all_time_of_a_round(mode: Mode, tmp_path: Path) -> None:
    samples = round_overhead.round_times("in-process", 2, mode, 2, "0.2M", str(tmp_path))
    stages = {name: values for name, values in samples.items() if name.startswith("stage ")}
    assert len(samples["round"]) == 2
    expected = ("ledger: reserve", "site", "checkpoint", "public loss")
    assert {f"stage {name}" for name in expected} <= set(stages)
    for whole, *parts in zip(samples["round"], *stages.values(), strict=True):
        assert sum(parts) == pytest.approx(whole, rel=0.01)


def test_failed_measurement_is_an_error_that_shows_what_it_printed() -> None:
    with pytest.raises(TacitError, match="no_such_function"):
        in_fresh_process("record:no_such_function")


def test_unknown_benchmark_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="startup, local_step, ledger, noise, round_overhead"):
        command.benchmark(["no_such_benchmark"])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALLEST))
def test_benchmark_runs_at_its_smallest_and_writes_valid_json(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(command.BENCHMARKS, name, (SMALLEST[name], SMALLEST[name]))
    command.benchmark([name], out=tmp_path / "results")
    record = Record.model_validate_json((tmp_path / "results" / f"{name}.json").read_text())
    assert record.benchmark == name
    assert record.figures
    assert all(figure.value >= 0 for figure in record.figures)
    assert not list(tmp_path.glob("runs/*"))
