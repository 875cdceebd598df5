"""Metrics of cost: what would imbalance cost on many devices, and what did this run take?"""

from functools import partial

from moebench.catalogue.metric import Column, Metric, Random, simulated

# of any placement, since earlier loads do not predict a random one
_RANDOM = Random("by simulation", lambda run: run.slowdown)
_slowdown = partial(Metric, direction="lower", even=1, per="R", scalars="whole")

COSTS = (
    _slowdown(
        "ep/slowdown",
        "the largest rank's load over the mean, summed over layers, with expert e on rank e mod R",
        random=_RANDOM,
        chart="Expert parallel: slowest of the virtual ranks over the mean (even: 1{random})",
        hparam=True,
        inspected="slowest rank over mean (even: 1)",
        column=Column("cost", "slowdown\nround-robin", 3, optional=True),
    ),
    _slowdown(
        "ep/slowdown_greedy",
        "the same with experts placed by their recent loads: the most loaded first, each on the "
        "rank with the least load",
        random=_RANDOM,
        chart="The same, experts placed by recent load (even: 1{random})",
        inspected="... experts placed by load",
        column=Column("cost", "slowdown\ngreedy", 3, optional=True),
    ),
    _slowdown(
        "ep/slowdown_redundant",
        "the same with room for one more expert a rank, for copies of the most loaded",
        chart="The same, and the fullest experts copied (even: 1)",
        inspected="... and the fullest copied",
        column=Column("cost", "slowdown\nredundant", 3, optional=True),
    ),
    Metric(
        "ep/all_to_all_bytes",
        "bytes that ranks send to others (round-robin): there and back, forward and backward",
        unit="bytes",
        direction="lower",
    ),
    Metric(
        "load/drop_rate",
        "share of assignments above a capacity of ⌈1.25 mean c⌉, which dropless training would "
        "drop; with `router.capacity_factor`, the share that was dropped",
        unit="share",
        window="micro-batch",
        direction="lower",
        even=0,
        random=simulated("micro", "drop_rate", "by simulation, with the same capacity and groups"),
        chart="Dropped, or would be at a capacity of 1.25 (share; even: 0{random})",
        inspected="dropped, or at a capacity of 1.25",
    ),
    Metric(
        "load/padding",
        "share of the rows of all capacities of ⌈1.25 mean c⌉ that stay empty, which padding to "
        "capacity would waste; with `router.capacity_factor`, of its capacities",
        unit="share",
        window="micro-batch",
        direction="lower",
        random=simulated("micro", "padding", "by simulation, with the same capacity and groups"),
    ),
    Metric(
        "speed/tokens_per_second",
        "tokens trained on since the last row, over the time that training took",
        unit="tokens/s",
        direction="higher",
        chart="Tokens per second",
        printed=True,
    ),
    Metric(
        "speed/step_seconds",
        "time of a step, the mean since the last row",
        unit="s",
        direction="lower",
        chart="Seconds per step",
    ),
    Metric(
        "speed/mfu",
        "model FLOPs of training over what this device reaches in a large matrix product",
        unit="share",
        direction="higher",
        needs="a run that is not stacked",
    ),
    Metric(
        "memory/peak_bytes",
        "most memory so far: of the run on a GPU, of the whole process on a CPU",
        unit="bytes",
        direction="lower",
        chart="Peak memory, bytes",
    ),
    Metric(
        "balance/allreduce_bytes",
        "bytes of counts that a rank adds up with the others",
        unit="bytes",
        direction="lower",
        needs="several ranks",
    ),
    Metric(
        "balance/allreduce_seconds",
        "time that adding them up takes",
        unit="s",
        direction="lower",
        needs="several ranks",
    ),
)
