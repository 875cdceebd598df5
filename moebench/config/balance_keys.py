"""The keys of balancing: its losses and their terms, how f is estimated, and its method."""

from dataclasses import dataclass
from typing import ClassVar

from moebench.config.knob import NOT_HASHED, knob
from moebench.scopes import SCOPES

ESTIMATORS = ("exact", "buffer", "stale", "ema")


@dataclass
class LossConfig:
    balance: float = knob(
        0.02, "weight of the balance loss", low=0, source="the rule in conf/loss/balance.yaml"
    )
    local: float = knob(
        0.0,
        "an extra micro-batch balance loss, as a fraction of loss.balance",
        low=0,
        neutral=0.0,
        source="arXiv 2501.11873, Table 5: 0.01",
    )
    z: float = knob(0.0, "weight of the router z-loss", low=0, neutral=0.0, source="ST-MoE: 0.001")


@dataclass
class TermConfig:
    """One balance loss among several: over what, how strongly, and when."""

    example: ClassVar = "[{scope:global},{scope:micro,weight:0.01}]"

    scope: str | None = knob(
        None, "as the key scope; null takes the run's scope and balance_bsz", choices=SCOPES
    )
    balance_bsz: int | None = knob(None, "as the key balance_bsz", unit="sequences", low=1)
    weight: float = knob(1.0, "as a multiple of loss.balance", low=0)
    start: float | None = knob(
        None,
        "acts after so many steps, or (below 1) after that share of train.steps",
        unit="steps",
        low=0,
    )
    stop: float | None = knob(
        None, "acts until so many steps are done, or that share of them", unit="steps", above=0
    )
    ramp: int = knob(
        0, "steps over which it rises after its start and falls after its stop", unit="steps", low=0
    )
    domains: dict[str, float] = knob(
        {}, "for scope=domain: what the loss of a domain's sequences is multiplied by; 1 if absent"
    )


@dataclass
class BalanceConfig:
    """How f is estimated, and by which conventions the balance loss is put together."""

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
        "steps whose counts are summed in f, the running one among them",
        unit="steps",
        low=1,
        neutral=1,
    )
    decay: float = knob(
        0.9, "beta of balance.estimator=ema: f <- beta f + (1 - beta) F", low=0, below=1
    )
    layers: str = knob(
        "mean",
        "how layers are put together: mean, sum, or pooled before the product f P",
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
        "what f meets: the router's full distribution, or that over the selected experts alone",
        choices=("full", "top_k"),
        neutral="full",
        source="top_k: MaxText before 2025-03-31",
    )
    terms: list[TermConfig] = knob(
        [],
        "several balance losses in place of one, as in "
        "[{scope:global},{scope:micro,weight:0.01,start:200}]",
        neutral=NOT_HASHED,
    )
    plugins: dict[str, str] = knob(
        {},
        "module and hash of each scope that is not shipped; filled in, and never loaded from here",
        neutral={},
    )
    estimator_error: bool = knob(
        False,
        "measure the estimator's router gradient against the exact one at every logged step",
        neutral=False,
    )


@dataclass
class MethodConfig:
    """What balances the router beside the losses, or, if their weights are 0, instead of them."""

    name: str = knob(
        "loss", "loss: nothing but the losses; or one of the methods below", neutral="loss"
    )
    options: dict[str, float] = knob(
        {}, "of the method, by name; method.options.NAME sets one of them", neutral={}
    )
    plugin: str | None = knob(
        None,
        "module and hash of a method that is not shipped; filled in, and never loaded from here",
        neutral=None,
    )
