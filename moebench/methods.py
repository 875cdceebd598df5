"""Every method of balancing, declared: its options, their ranges, and what it needs.

A declaration holds all that a config must know of a method, without torch; `target` is the class
that does the work (see `balance/method.py`). `register` declares a method of your own, in a module
that `--plugin` or an entry point of the group `moebench.methods` names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moebench import registry
from moebench.ranges import Range
from moebench.registry import Registry

LOSS = "loss"  # no method acts beside the losses


@dataclass(frozen=True)
class Option(Range):
    """A number that a method takes, `method.options.NAME`.

    Attributes:
        default: its value where nothing sets it; a word is a key of the config that has the value.
        meaning: what it does, in one line.
        unit: of the value, "" for a pure number.
        divides: a key of the config that it must divide.
        source: where the default comes from.
    """

    default: float | str
    meaning: str
    unit: str = ""
    divides: str | None = None
    source: str = ""


def flag(meaning: str, source: str = "") -> Option:
    """An option that is on (1) or off (0)."""
    return Option(0, meaning, low=0, high=1, whole=True, source=source)


def weight(
    default: float, meaning: str = "of the penalty in the objective", source: str = ""
) -> Option:
    """An option that scales a penalty."""
    return Option(default, meaning, low=0, source=source)


@dataclass(frozen=True)
class Declaration(registry.Declaration):
    """What a config knows of a method.

    Attributes:
        options: by name.
        stackable: whether arms with it can be stacked (`torch.func.vmap` over the forward): no
            value leaves the device, and no shape depends on a value.
        offsets: whether it moves the scores that experts are selected by (a bias), which needs a
            router that selects by scores.
        assigns: whether it selects experts itself in logical groups, in place of top-k.
        gates: the values of `router.gate` that it is for; empty: all.
        by_logits: the option that has experts selected by the router's logits, whatever the gate;
            None: there is none.
    """

    options: Mapping[str, Option] = field(default_factory=dict)
    stackable: bool = True
    offsets: bool = False
    assigns: bool = False
    gates: tuple[str, ...] = ()
    by_logits: str | None = None


SHIPPED = (
    Declaration(LOSS, "nothing but the losses", None),
    Declaration(
        "bias",
        "select by scores plus a bias that follows the load, step by step (arXiv 2408.15664)",
        "moebench.balance.bias:Bias",
        {
            "rate": Option(
                1e-3, "u: by how much the bias moves in a step", above=0, source="arXiv 2408.15664"
            ),
            "balance_bsz": Option(
                "global_bsz",
                "sequences in a group: the step is the mean over groups of that of each",
                unit="sequences",
                low=1,
                whole=True,
                divides="global_bsz",
            ),
            "proportional": flag("move by u * e_i in place of u * sign(e_i)"),
            "multiplicative": flag("multiply scores by the bias, which begins at 1"),
            "centred": flag("take the mean over experts from each move", source="torchtitan"),
        },
        offsets=True,
    ),
    Declaration(
        "quantile",
        "select by scores plus the bias that would have evened the last step (kexue.fm 11619)",
        "moebench.balance.quantile:Quantile",
        {
            "decay": Option(0, "of a moving average of the bias", low=0, below=1, source="0"),
            "logits": flag("read and select by raw logits, and not by the gate's scores"),
        },
        offsets=True,
        by_logits="logits",
    ),
    Declaration(
        "expert_choice",
        "each expert takes the tokens it scores highest, in training (arXiv 2202.09368)",
        "moebench.balance.assignment:ExpertChoice",
        {
            "capacity_factor": Option(
                1, "tokens an expert takes, as a multiple of its even share", above=0
            )
        },
        assigns=True,
    ),
    Declaration(
        "base",
        "the even assignment of the largest total score, in training (arXiv 2103.16716)",
        "moebench.balance.assignment:Base",
        stackable=False,
        assigns=True,
    ),
    Declaration(
        "sinkhorn",
        "top-k of scores evened out within a group, in training (arXiv 2202.01169)",
        "moebench.balance.assignment:Sinkhorn",
        {
            "tolerance": Option(
                1e-4,
                "when evening-out is done: no dual moves by more",
                above=0,
                source="Megatron-LM",
            ),
            "max_iterations": Option(100, "after which it is done anyway", low=1, whole=True),
        },
        stackable=False,
        assigns=True,
    ),
    Declaration(
        "load_error",
        "the load's error in the gradient of every token's logits (load-error injection)",
        "moebench.balance.penalized:LoadErrorInjection",
        {
            "weight": weight(1e-5, "lambda: of what is injected"),
            "tau": Option(1, "the largest error that is injected", above=0),
        },
    ),
    Declaration(
        "simbal",
        "routers with orthonormal rows (arXiv 2506.14038)",
        "moebench.balance.penalized:SimBal",
        {"weight": weight(0.01)},
    ),
    Declaration(
        "orthogonality",
        "routers whose rows point apart (ERNIE 4.5)",
        "moebench.balance.penalized:RouterOrthogonality",
        {"weight": weight(0.01, source="ERNIE 4.5's code")},
    ),
    Declaration(
        "specialize",
        "experts' outputs kept apart and scores that vary (arXiv 2505.22323)",
        "moebench.balance.penalized:Specialize",
        {
            "orthogonality": weight(1e-3, "beta: of the overlap of a token's experts"),
            "variance": weight(1e-3, "gamma: of the scores' variance"),
        },
    ),
    Declaration(
        "remoe",
        "an L1 penalty of ReLU gates whose weight keeps top_k of them active (arXiv 2412.14711)",
        "moebench.balance.penalized:ReMoE",
        {
            "start": weight(1e-8, "lambda of the first step", source="thu-ml/ReMoE"),
            "factor": Option(
                1.2, "by which lambda grows or falls in a step", low=1, source="thu-ml/ReMoE"
            ),
            "top_k": Option("model.top_k", "active experts a token to aim for", low=1, whole=True),
        },
        gates=("relu",),
    ),
    Declaration(
        "snippet",
        "the loss of a snippet that circulates in web articles, made to run",
        "moebench.balance.snippet:Snippet",
        {
            "weight": weight(0.01, "of its loss"),
            "every": Option(128, "steps from one loss to the next", "steps", low=1, whole=True),
        },
    ),
)

METHODS = Registry("method", "method.name", Declaration, SHIPPED)
register = METHODS.register
declared = METHODS.get
