"""`moebench bench`: the speed of training steps on this machine."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moebench.cli.options import (
    RUNS,
    AsJson,
    ConfigDir,
    Overrides,
    Plugins,
    RunsDir,
    completion,
    load_plugins,
    parse_number,
)
from moebench.cli.output import print_json, print_message, stdout_console
from moebench.errors import ConfigError

if TYPE_CHECKING:
    from moebench.bench import Timing
    from moebench.config.schema import ExperimentConfig
    from moebench.study import Plan

Study = Annotated[
    str | None,
    typer.Option(
        "--study",
        help="time every arm of a planned study, and store the times beside its plan",
        autocompletion=completion("studies"),
    ),
]
Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds", parser=parse_number, metavar="N", help="measured steps per arm; by default 9"
    ),
]

COLUMNS = ("arm", "tokens/s", "ratio", "MFU", "loading", "balancing", "statistics")


def bench(
    overrides: Overrides = None,
    study: Study = None,
    rounds: Rounds = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    plugin: Plugins = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Time training steps of arms, in turn; run nothing else on the machine meanwhile.

    Examples: `moebench bench`, `moebench bench scope=micro model=small`,
    `moebench bench --study demo`
    """
    from moebench import device
    from moebench.config.compose import Composer
    from moebench.config.identity import label
    from moebench.study import find_plan

    load_plugins(plugin)
    if study is None:
        config = Composer(config_dir, device.suited_precision).compose(overrides or [])
        plan, configs = None, {label(config): config}
    elif overrides:
        raise ConfigError(f"{overrides[0]}: --study times its arms as they are; leave it out")
    else:
        plan = find_plan(runs_dir, study)
        configs = _configs_by_arm(plan)
    timings = _time(configs, runs_dir, rounds)
    if plan is not None:
        _store(plan, configs, timings, runs_dir)
    if as_json:
        print_json({"arms": {arm: asdict(timing) for arm, timing in timings.items()}})
    else:
        rows = [(label(configs[arm]), timing) for arm, timing in timings.items()]
        stdout_console().print(_table(rows))


def _configs_by_arm(plan: "Plan") -> "dict[str, ExperimentConfig]":
    """The config of each arm's first seed, by arm hash, in the order of the plan."""
    from moebench.config.compose import from_dict

    first = {job.arm_hash: job for job in reversed(plan.jobs)}
    return {job.arm_hash: from_dict(job.config) for job in plan.jobs if first[job.arm_hash] is job}


def _time(
    configs: "Mapping[str, ExperimentConfig]", runs_dir: Path, rounds: int | None
) -> "dict[str, Timing]":
    from moebench.bench import ROUNDS, time_arms  # imports torch
    from moebench.cli.progress import track

    rounds = rounds or ROUNDS
    after_each_round = time_arms(list(configs.values()), runs_dir, rounds, print_message)
    *_, timings = track(after_each_round, rounds, "rounds")
    return dict(zip(configs, timings, strict=True))


def _store(
    plan: "Plan",
    configs: "Mapping[str, ExperimentConfig]",
    timings: "Mapping[str, Timing]",
    runs_dir: Path,
) -> None:
    """Write the times beside the plan, where `moebench report` reads them."""
    from moebench.bench import machine_of
    from moebench.disk import write_json
    from moebench.step_costs import COST_FILE

    path = plan.path(runs_dir).with_name(COST_FILE)
    machine = machine_of(next(iter(configs.values())))
    write_json(path, {arm: {**asdict(t), "machine": machine} for arm, t in timings.items()})
    print_message(f"{path}: contains the times of {len(timings)} arms; moebench report shows them")


def _table(rows: "list[tuple[str, Timing]]") -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    for arm, timing in rows:
        shares = (timing.mfu, timing.loading, timing.balancing, timing.statistics)
        table.add_row(
            arm + (" (counting pass)" if timing.counting_seconds else ""),
            f"{timing.tokens_per_second:,.0f}",
            f"{timing.ratio:.2f}",
            *(f"{share:.1%}" for share in shares),
        )
    return table
