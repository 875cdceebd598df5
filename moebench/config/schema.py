"""Every key of a config, typed: its meaning, unit, range and neutral value.

A field made by `knob` holds all facts about a key. Range checks, identities (`identity.py`) and
docs/keys.md read them from there. `balance_keys.py` has the keys of losses and methods, and
`router_keys.py` those of routers. The classes are mutable because OmegaConf needs that; nothing in
moebench changes a config after `compose` returned it.
"""

from dataclasses import dataclass, field

from moebench.config.balance_keys import BalanceConfig, LossConfig, MethodConfig
from moebench.config.knob import NOT_HASHED, knob
from moebench.config.router_keys import RouterConfig
from moebench.ranges import LARGEST
from moebench.scopes import SCOPES

MOST_THREADS = 1024
PRECISIONS = ("auto", "fp32", "bf16", "fp64")
SOURCES = ("installed", "folder", "huggingface", "synthetic", "mixture")


@dataclass
class ModelConfig:
    moe: bool = knob(
        True,
        "use experts; false makes a dense model with as many active parameters, except routers",
        neutral=True,
    )
    dense_layers: int = knob(
        0,
        "first layers without experts, as wide as the experts of one token together",
        unit="layers",
        low=0,
        neutral=0,
        source="DeepSeek-V3: 3 of 61",
    )
    d_model: int = knob(128, "width of the residual stream", low=8)
    num_layers: int = knob(3, "transformer layers, each with experts", low=1)
    num_heads: int = knob(4, "attention heads; must divide model.d_model", low=1)
    num_experts: int = knob(16, "routed experts in a layer", low=2)
    zero_experts: int = knob(
        0,
        "of the routed experts, the last ones that return their input and have no weights",
        unit="experts",
        low=0,
        neutral=0,
        source="LongCat-Flash: 256 beside 512 others",
    )
    top_k: int = knob(2, "experts selected for each token", low=1)
    expert_dim: int = knob(96, "hidden width of one SwiGLU expert", low=8)
    num_shared_experts: int = knob(
        0,
        "shared experts, which process every token in addition to the routed ones",
        low=0,
        neutral=0,
    )
    init: str | None = knob(
        None,
        "folder of a Hugging Face checkpoint whose weights the run starts from: qwen3_moe, as "
        "moebench export writes it, or qwen3, each of whose layers becomes equal experts",
        neutral=NOT_HASHED,
        source="upcycling: arXiv 2212.05055",
    )
    weights: dict[str, str] = knob(
        {},
        "of model.init: its folder, its class, and a hash of its weights, which stands for the "
        "path in an identity; filled in",
        neutral=NOT_HASHED,
    )


@dataclass
class DataConfig:
    """Text, tokens and batches. A run's identity contains a hash of the text and its tokens."""

    source: str = knob(
        "installed", "where the text comes from", choices=SOURCES, neutral=NOT_HASHED
    )
    path: str | None = knob(
        None, "folder with one sub-folder or file per domain, for data=folder", neutral=NOT_HASHED
    )
    name: str | None = knob(
        None,
        "dataset of the Hugging Face Hub, or a folder with one, for data=huggingface",
        neutral=NOT_HASHED,
    )
    config: str | None = knob(
        None, "configuration of the dataset, for data=huggingface", neutral=NOT_HASHED
    )
    split: str = knob("train", "split of the dataset, for data=huggingface", neutral=NOT_HASHED)
    revision: str | None = knob(
        None, "commit of the dataset, for data=huggingface; a folder needs none", neutral=NOT_HASHED
    )
    streaming: bool = knob(
        False, "read the dataset without keeping a copy, for data=huggingface", neutral=NOT_HASHED
    )
    max_bytes: int | None = knob(
        None,
        "most text to read, for data=huggingface; null reads all",
        unit="bytes",
        low=1,
        neutral=NOT_HASHED,
    )
    text_column: str = knob(
        "text", "column with the text, in JSON lines, Parquet and datasets", neutral=NOT_HASHED
    )
    domain_column: str | None = knob(
        None,
        "column with the domain; null takes the name of the folder or file",
        neutral=NOT_HASHED,
    )
    num_domains: int = knob(
        4, "Markov sources, for data=synthetic", low=1, high=1000, neutral=NOT_HASHED
    )
    overlap: float = knob(
        0.0,
        "what Markov sources share, for data=synthetic: 0 nothing, 1 everything",
        low=0,
        high=1,
        neutral=NOT_HASHED,
    )
    text_seed: int = knob(
        0,
        "seed of Markov sources and of the sample that BPE is trained on; not of the batches",
        low=0,
        high=LARGEST,
        neutral=NOT_HASHED,
    )
    sources: list[str] = knob(
        [],
        'for data=mixture: one source each, as in "folder path=DIR domains=[a,b]", with the keys '
        "of data.*",
        neutral=NOT_HASHED,
    )
    domains: list[str] | None = knob(
        None, "names of the domains to take; null takes all", neutral=NOT_HASHED
    )
    heldout: list[str] = knob(
        [],
        "names of the domains that are validated on separately, and never trained on",
        neutral=[],
    )
    tokenizer: str = knob(
        "bytes",
        "bytes; bpe, trained on the text; or the path of a byte-level tokenizer.json",
        neutral=NOT_HASHED,
    )
    vocab_size: int = knob(
        4096, "tokens of data.tokenizer=bpe, with the end mark", low=258, neutral=NOT_HASHED
    )
    sampling: str = knob(
        "uniform",
        "shares of the domains: equal, or in proportion to their training tokens",
        choices=("uniform", "proportional"),
        neutral="uniform",
    )
    temperature: float = knob(
        1.0,
        "for data.sampling=proportional: shares in proportion to tokens ** (1 / temperature)",
        above=0,
        neutral=1.0,
        source="arXiv 1907.05019, Section 4.2: 5",
    )
    weights: dict[str, float] = knob(
        {}, "factors of the domains' shares, 1 where none is given, as in {law:2}", neutral={}
    )
    domain_token: bool = knob(
        False,
        "one more token comes first in each sequence and names its domain; what it predicts is not "
        "counted",
        neutral=False,
    )
    mask_documents: bool = knob(
        False, "attention stays within a document where a sequence holds several", neutral=False
    )
    homogeneity: float = knob(
        1.0,
        "share of a global batch whose micro-batches keep to one domain: 1 all, 0 mixed freely",
        low=0,
        high=1,
        neutral=1.0,
    )
    max_epochs: float = knob(
        4.0,
        "most passes over a domain; a run that needs more is refused",
        unit="epochs",
        above=0,
        neutral=NOT_HASHED,
    )
    valid_sequences: int = knob(
        32, "validation sequences of each domain, in each of the halves tune and test", low=1
    )


@dataclass
class OptimConfig:
    lr: float = knob(3e-3, "peak learning rate", above=0)
    beta1: float = knob(0.9, "decay of AdamW's first moment", low=0, below=1)
    beta2: float = knob(0.95, "decay of AdamW's second moment", low=0, below=1)
    weight_decay: float = knob(0.1, "decoupled decay of every matrix", low=0)
    clip: float = knob(1.0, "largest norm of the whole gradient", above=0)
    warmup: float = knob(0.1, "share of the steps in which the rate rises from 0", low=0, high=1)
    final: float = knob(
        0.1, "rate at the last step, as a share of the peak (cosine)", low=0, high=1
    )
    router_lr: float = knob(
        1.0,
        "learning rate of the routers, as a multiple of that of all other weights; their weight "
        "decay, which the rate scales, changes with it",
        low=0,
        neutral=1.0,
    )
    ema: float = knob(
        0.0,
        "evaluate an average of the weights over about the last so many steps, as a share of "
        "train.steps; training does not see it; 0 evaluates the last weights",
        low=0,
        high=1,
        neutral=0.0,
        source="arXiv 2301.02312: near to optim.final=0",
    )


@dataclass
class TrainConfig:
    steps: int = knob(400, "optimizer steps", unit="steps", low=1)
    precision: str = knob(
        "auto",
        "precision of matrix products; auto means bf16 on a GPU that computes in it, else fp32; "
        "fp64 is for tests",
        choices=PRECISIONS,
    )
    eval_every: int = knob(
        100,
        "steps between evaluations; 0 evaluates at the start and the end only",
        unit="steps",
        low=0,
    )


@dataclass
class RunConfig:
    """How a run is executed; no part of its identity."""

    device: str = knob("auto", "auto takes a GPU if there is one", choices=("auto", "cpu", "cuda"))
    device_bsz: int | None = knob(
        None,
        "sequences in one physical pass; a divisor of global_bsz; null takes all of it",
        unit="sequences",
        low=1,
    )
    threads: int | None = knob(
        None,
        "CPU threads; null takes 1 in a sweep, else all cores, but on a CPU one for each 8 million "
        "FLOPs of an expert's product at most, so that small steps take 1; typed, at most 4 a "
        "core, or 64 if that is more",
        unit="threads",
        low=1,
        high=MOST_THREADS,
    )
    compile: str = knob(
        "auto",
        "compile forward and backward; auto compiles runs that are long enough to gain time",
        choices=("auto", "true", "false"),
    )
    experts: str = knob(
        "auto",
        "kernels of the experts: torch's grouped product, or moebench's own in Triton; auto takes "
        "Triton on a GPU where torch has no kernel of its own (fp32, or bf16 off sm_90 and sm_100)",
        choices=("auto", "torch", "triton"),
    )
    stack: str = knob(
        "auto",
        "runs of equal shape that one process of a sweep trains together: a whole number, or auto "
        "(as many as fit in the memory of a GPU; one on a CPU)",
        unit="runs",
    )
    deterministic: bool = knob(
        False,
        "on a GPU, sum in a fixed order, so that a run of the same card and versions gives equal "
        "bits; slower where router=relu or a method that chooses tokens leaves slots empty",
    )
    record_selections: bool = knob(
        False,
        "store the experts of every token at every step and evaluation, a byte each, for "
        "router.replay of other runs",
    )
    log_every: int = knob(10, "steps between rows of metrics", unit="steps", low=1)
    checkpoint_every: int = knob(100, "steps between checkpoints", unit="steps", low=1)


@dataclass
class ExperimentConfig:
    """One run: one arm with one seed."""

    scope: str = knob(
        "global", "sequences whose expert counts give the f of the balance loss", choices=SCOPES
    )
    balance_bsz: int | None = knob(
        None,
        "sequences in a balance group; null takes the default of the scope",
        unit="sequences",
        low=1,
    )
    micro_bsz: int = knob(4, "sequences in a logical micro-batch", unit="sequences", low=1)
    global_bsz: int = knob(128, "sequences in an optimizer step", unit="sequences", low=1)
    seq_len: int = knob(128, "tokens in a sequence", unit="tokens", low=2)
    seed: int = knob(0, "seed of initial weights, batches and random draws", low=0, high=LARGEST)
    loss: LossConfig = field(default_factory=LossConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class StudyConfig:
    """Arms x seeds, and which comparison is the point."""

    name: str = knob("", "of the study, as `study=` selects it")
    question: str = knob("", "what the study asks, in one sentence")
    overrides: list[str] = knob([], "overrides that every arm takes, seeds among them")
    arms: list[str] = knob([], "one arm each: overrides separated by blanks")
    exclude: list[str] = knob(
        [], "runs left out: overrides separated by blanks, all of which such a run has"
    )
    baseline: str = knob("", "label of the arm that the others are compared with")
    primary: str = knob("valid/nats", "the metric that gets p values and verdicts")
    secondary: list[str] = knob([], "further metrics that get verdicts, at a level of their own")
    order: list[str] = knob(
        [],
        "findings in the order in which they are tested, first the study's own question, which "
        "--until-decided looks at; all others are described",
    )
    average_twin: bool = knob(
        False, "compare with the mean of the baseline and its A/A arm, once they have parted"
    )
    size: str = knob("cpu", "which of `sizes` applies")
    sizes: dict[str, list[str]] = knob({}, "overrides of each size, after `overrides`")
    trials: dict[str, int] = knob(
        {}, "trials of each search in each size, where arms have ranges; see docs/tuning.md"
    )
    trial_seeds: int = knob(1, "seeds of each trial, from 1000 on", low=1, high=1000)
