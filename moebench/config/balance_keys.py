"""The keys of balancing: its losses and their terms, how f is estimated, and its method."""

from dataclasses import dataclass
from typing import ClassVar

from moebench.config.knob import NOT_HASHED, knob
from moebench.scopes import SCOPES

COUNTS = ("scores", "grouped", "biased", "first")
ESTIMATORS = ("exact", "buffer", "stale", "ema")


@dataclass
class LossConfig:
    balance: float = knob(
        0.02, "weight of the balance loss", low=0, source="the rule in conf/loss/balance.yaml"
    )
    local: float = knob(
        0.0,
        "weight of an additional micro-batch balance loss, as a fraction of loss.balance",
        low=0,
        neutral=0.0,
        source="arXiv 2501.11873, Table 5: 0.01",
    )
    z: float = knob(0.0, "weight of the router z-loss", low=0, neutral=0.0, source="ST-MoE: 0.001")


@dataclass
class TermConfig:
    """One of several balance losses: its scope, its weight, and when it acts."""

    example: ClassVar = "[{scope:global},{scope:micro,weight:0.01}]"

    scope: str | None = knob(
        None, "as the key scope; null takes the run's scope and balance_bsz", choices=SCOPES
    )
    balance_bsz: int | None = knob(None, "as the key balance_bsz", unit="sequences", low=1)
    weight: float = knob(1.0, "as a multiple of loss.balance", low=0)
    start: float | None = knob(
        None,
        "steps before it starts; below 1, a share of train.steps",
        unit="steps",
        low=0,
    )
    stop: float | None = knob(
        None, "steps after which it stops; below 1, a share of train.steps", unit="steps", above=0
    )
    ramp: int = knob(
        0, "steps over which it rises after its start and falls after its stop", unit="steps", low=0
    )
    domains: dict[str, float] = knob(
        {}, "for scope=domain: factors of the domains' losses, 1 where none is given"
    )


@dataclass
class BalanceConfig:
    """How f is estimated, and the conventions of the balance loss."""

    estimator: str = knob(
        "exact",
        "exact counts whole groups first; buffer takes the prefix over a step's logical passes; "
        "stale the last step's f; ema its moving average",
        choices=ESTIMATORS,
        neutral="exact",
        source="buffer: arXiv 2501.11873, Algorithm 1",
    )
    pass_bsz: int | None = knob(
        None,
        "sequences in a logical pass of balance.estimator=buffer; null is micro_bsz",
        unit="sequences",
        low=1,
    )
    window_steps: int = knob(
        1,
        "steps whose counts are summed in f, including the current one",
        unit="steps",
        low=1,
        neutral=1,
    )
    decay: float = knob(
        0.9, "beta of balance.estimator=ema: f <- beta f + (1 - beta) F", low=0, below=1
    )
    layers: str = knob(
        "mean",
        "how layers are combined: mean, sum, or pooled before the product f P",
        choices=("mean", "sum", "pooled"),
        neutral="mean",
        source="sum: Megatron-LM, minimind; pooled: Hugging Face",
    )
    uniform: str = knob(
        "1",
        "value of the loss at uniform routing, in each layer: 1, or k (model.top_k)",
        choices=("1", "k"),
        neutral="1",
        source="k: Hugging Face, MaxText, minimind",
    )
    probs: str = knob(
        "full",
        "probabilities that f is multiplied by: full, or top_k, over the selected experts alone",
        choices=("full", "top_k"),
        neutral="full",
        source="top_k: MaxText before 2025-03-31",
    )
    counts: str = knob(
        "scores",
        "which selection f counts: the top-k of all scores; under router.expert_groups, grouped, "
        "the top-k within the best groups; under a bias, biased, the actual one; or first, each "
        "token's first choice alone",
        choices=COUNTS,
        source="scores: DeepSeek-V3, Megatron-LM; biased: OLMo-core, MaxText; first: GShard",
    )
    terms: list[TermConfig] = knob(
        [],
        "several balance losses in place of one, as in "
        "[{scope:global},{scope:micro,weight:0.01,start:200}]",
        neutral=NOT_HASHED,
    )
    plugins: dict[str, str] = knob(
        {},
        "module and hash of each scope from a plugin; filled in, and never loaded from here",
        neutral={},
    )
    estimator_error: bool = knob(
        False,
        "measure the estimator's router gradient against the exact one at every logged step",
        neutral=False,
    )


@dataclass
class MethodConfig:
    """What balances the router beside the losses, or instead of them if their weights are 0."""

    name: str = knob(
        "loss", "one of the methods below; loss adds nothing to the losses", neutral="loss"
    )
    options: dict[str, float] = knob(
        {}, "options of the method by name; method.options.NAME sets one of them", neutral={}
    )
    plugin: str | None = knob(
        None,
        "module and hash of a method from a plugin; filled in, and never loaded from here",
        neutral=None,
    )
