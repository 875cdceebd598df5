"""The numbers of a whole run: its sealed summary, and what random routing would give."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from moebench.catalogue import METRICS, is_settled, taken
from moebench.config.identity import label
from moebench.config.schema import ExperimentConfig
from moebench.config.treatment import Treatment, routed_len
from moebench.data.corpus import Corpus
from moebench.errors import RecordError
from moebench.metrics.change import changed_tokens, saturation
from moebench.metrics.expert_parallel import main_ranks, random_slowdown, rank_numbers
from moebench.metrics.load import random_load
from moebench.records import Record
from moebench.train.loop import Event


def seal(
    treatment: Treatment,
    record: Record,
    seconds: float,
    conclude: Callable[[Mapping[str, Any]], None],
) -> None:
    """Write the summary of a finished run, which seals its record.

    Args:
        conclude: called with the summary before it is written: nothing of a sealed run is missing.

    Raises RecordError if the record lacks rows.
    """
    config = treatment.config
    steps, rows = config.train.steps, record.rows()
    if not rows or rows[-1]["step"] != steps or "valid/nats" not in rows[-1]:
        raise RecordError(
            f"{record.path / 'metrics.jsonl'}: lacks rows of this run; --force starts afresh"
        )
    summary = {
        "status": "done",
        "arm": label(treatment),
        "seed": config.seed,
        "steps": steps,
        "tokens": steps * config.global_bsz * config.seq_len,
        "seconds": round(seconds, 3),
        "end": datetime.now(UTC).isoformat(timespec="seconds"),
        **_final_metrics(rows, steps),
        **_over_training(config, record, rows[0]),
    }
    conclude(summary)
    record.seal(summary)


def _final_metrics(rows: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """The last value of each metric of evaluations; for others, the mean of the settled rows."""
    settled = [row for row in rows if is_settled(row["step"], steps)]
    metrics: dict[str, float] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        if "/" not in key or isinstance(rows[-1].get(key), list):
            continue
        values = [row[key] for row in settled if key in row]
        if values:
            last = taken(key) == "last"
            metrics[key] = values[-1] if last else sum(values) / len(values)
    return metrics


def _over_training(
    config: ExperimentConfig, record: Record, first: dict[str, Any]
) -> dict[str, Any]:
    """Metrics of the whole run: some values at its start, and how soon the routing settled."""
    metrics = {name: first[metric.of] for name, metric in METRICS.items() if metric.of in first}
    probes = record.probes()
    if not probes:  # of a dense model
        return metrics
    settled = saturation(probes)
    half = min(settled, key=lambda step: abs(step - config.train.steps / 2))
    return {**metrics, "router/saturation": settled[half]}


def routing_change(record: Record, event: Event) -> dict[str, float]:
    """The share of tokens whose experts differ from those of the evaluation before."""
    earlier = [step for step in record.routing_steps() if step < event.step]
    if event.routing is None or not earlier:
        return {}
    before = record.routing(earlier[-1], "probe_index")["probe_index"]
    now = event.routing["probe_index"]
    return {"router/changed": float(changed_tokens(before, now).mean())}


def random_baselines(treatment: Treatment, corpus: Corpus) -> dict[str, Any]:
    """The loads that random routing would give, over the windows of the load metrics."""
    config, model = treatment.config, treatment.config.model
    experts, top_k, length = model.num_experts, model.top_k, routed_len(config)
    ranks = main_ranks(rank_numbers(experts, config.global_bsz // config.micro_bsz))
    windows = {
        "micro": config.micro_bsz * length,
        "batch": config.global_bsz * length,
        "global": len(corpus.domains) * config.data.valid_sequences * length,
    }
    loads = {window: random_load(experts, top_k, tokens) for window, tokens in windows.items()}
    factor, group_bsz = config.router.capacity_factor, treatment.router_bsz
    if factor is not None and group_bsz is not None:  # tokens are dropped by group
        of_group = random_load(experts, top_k, group_bsz * length, factor)
        loads["micro"] |= {key: of_group[key] for key in ("drop_rate", "padding")}
    return {
        "random_max_vio": {window: load["max_vio"] for window, load in loads.items()},
        "random_load": loads,
        "random_slowdown": random_slowdown(experts, top_k, windows["micro"], ranks)
        if ranks
        else None,
    }
