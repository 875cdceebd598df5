"""The keys of routers: how experts are scored, selected and weighted."""

from dataclasses import dataclass

from moebench.config.knob import NOT_HASHED, knob

GATES = ("softmax", "topk_softmax", "sigmoid", "sqrt_softplus", "sparsemax", "relu")
MAPS = ("none", "hash", "sequence_hash", "domain", "domain_token", "replay")


@dataclass
class RouterConfig:
    gate: str = knob(
        "softmax",
        "how router logits become scores; topk_softmax selects by logits, sparsemax and relu leave "
        "experts without a score unselected, relu selects all that have one",
        choices=GATES,
        neutral="softmax",
        source="sigmoid: DeepSeek-V3; sqrt_softplus: Megatron-LM; relu: arXiv 2412.14711",
    )
    form: str = knob(
        "linear",
        "how logits are computed: linear; cosine of a projection and a vector an expert; or mlp, "
        "with a hidden layer of model.d_model",
        choices=("linear", "cosine", "mlp"),
        neutral="linear",
        source="cosine: arXiv 2204.09179",
    )
    gate_bias: bool = knob(False, "add a learned bias to the logits", neutral=False)
    softcap: float | None = knob(
        None,
        "c: logits z become c tanh(z / c), between -c and c; null is no cap",
        above=0,
        neutral=None,
        source="Laguna (transformers): moe_router_logit_softcapping",
    )
    renormalize: bool = knob(
        True,
        "scale the weights of the selected experts to sum to 1; not done at model.top_k=1 (but for "
        "relu), where the weight would always be 1",
        neutral=True,
    )
    shared_gate: bool = knob(
        False,
        "shared experts have a logit each, and share the sum to which the weights of the selected "
        "experts are scaled; false gives them a weight of 1",
        neutral=False,
        source="Inkling (transformers)",
    )
    scale: float = knob(
        1.0,
        "factor of the weights of experts, after they were scaled to sum to 1",
        above=0,
        neutral=1.0,
        source="routed_scaling_factor: DeepSeek-V3 2.5, DeepSeek-V4 1.5",
    )
    expert_scale: bool = knob(
        False,
        "each expert has a learned factor of its weights, 1 at first",
        neutral=False,
        source="Gemma 4: per_expert_scale",
    )
    jitter: float = knob(
        0.0,
        "in training, multiply the router's input by a draw from 1 - jitter to 1 + jitter",
        low=0,
        high=1,
        neutral=0.0,
        source="Switch, DeepSpeed: 0.01",
    )
    noise: float = knob(
        0.0,
        "in training, add noise to the logits, of a learned deviation times this factor",
        low=0,
        neutral=0.0,
        source="arXiv 1701.06538, Eq. 4: 1",
    )
    random: bool = knob(
        False, "draw each token's experts evenly; the gate weighs them", neutral=False
    )
    round_robin: bool = knob(
        False,
        "take each token's experts in turn, by its position in the sequence; the gate weighs them",
        neutral=False,
        source="torchtitan, OLMo-core, megablocks: forced even load",
    )
    map: str = knob(
        "none",
        "a fixed map prescribes the experts, and the gate weighs them: by hash of the token, "
        "sequence_hash, domain and sequence, or domain_token, by domain and token; replay: a "
        "recorded run prescribes them; none: the gate selects",
        choices=MAPS,
        neutral="none",
        source="hash: arXiv 2106.04426; domain: arXiv 2604.07030",
    )
    hash_layers: int | None = knob(
        None,
        "with router.map: the first layers alone have it; null is all",
        unit="layers",
        low=1,
        source="DeepSeek-V4",
    )
    replay: str | None = knob(
        None,
        "with router.map=replay: the run whose recorded selections are taken; of several that a "
        "pattern names, each seed takes its own",
        neutral=NOT_HASHED,
        source="Megatron-LM: router_replay.py",
    )
    recording: dict[str, str] = knob(
        {},
        "of router.replay: its run, its arm, and a hash of its selections, which stands for the "
        "path in an identity; filled in",
        neutral=NOT_HASHED,
    )
    expert_groups: int = knob(
        1, "groups of experts, of which each token takes some", low=1, neutral=1
    )
    top_groups: int = knob(
        1,
        "groups of a token's experts: those with the largest sum of their highest scores",
        low=1,
        neutral=1,
        source="DeepSeek-V3: 4 of 8",
    )
    group_worth: str = knob(
        "top_two",
        "how many scores that sum has: the top_two; one, the max; or a token's share of experts in "
        "each of its groups, model.top_k // router.top_groups",
        choices=("top_two", "max", "share"),
        neutral="top_two",
        source="top_two: DeepSeek-V3; max: DeepSeek-V2; share: Megatron-LM",
    )
    capacity_factor: float | None = knob(
        None,
        "most assignments of a logical group that an expert takes, as a multiple of its even "
        "share; the others are dropped; null drops none",
        above=0,
        neutral=None,
        source="Switch: 1.25",
    )
    drop: str = knob(
        "probability",
        "assignments that a full expert keeps: those of the highest score (probability), of the "
        "highest final weight, or the first by position",
        choices=("probability", "weight", "position"),
        neutral="probability",
        source="probability: DeepSpeed; weight: Megatron-LM; position: Switch",
    )
    group_bsz: int | None = knob(
        None,
        "sequences in a logical group, in which capacities hold and experts are assigned; null is "
        "micro_bsz",
        unit="sequences",
        low=1,
    )
    start_experts: int | None = knob(
        None, "active experts at first; null is all", unit="experts", low=1, neutral=None
    )
    full_at: float = knob(
        0.5,
        "with router.start_experts: steps after which all are active; below 1, a share of "
        "train.steps; they are added one by one",
        unit="steps",
        above=0,
    )
    prune_below: float = knob(
        0.0,
        "an expert retires for good if its load is below this multiple of its even share",
        low=0,
        neutral=0.0,
    )
    prune_every: int = knob(
        50, "with router.prune_below: steps over which the load is taken", unit="steps", low=1
    )
    init: float = knob(
        1.0,
        "initial deviation of the routers' weights, as a multiple of 0.02; of no use where "
        "model.init brings routers",
        low=0,
        neutral=1.0,
    )
    perturb: float = knob(
        0.0,
        "deviation of noise added to the initial weights of routers; 1e-6 makes an A/A arm, whose "
        "difference from its twin is the noise floor",
        low=0,
        neutral=0.0,
    )
