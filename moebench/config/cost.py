"""What a run costs, counted from the shapes of its config: FLOPs, memory and disk.

A product of [m, k] and [k, n] is 2 m k n FLOPs; of everything else there is little. A backward is
two products for each of the forward's.
"""

from moebench.config.schema import ExperimentConfig, TrainConfig
from moebench.config.treatment import moe_layers, routed_len
from moebench.methods import declared

BYTES = {"fp32": 4, "bf16": 2, "fp64": 8}
CHECKPOINTS = 2  # that a record keeps
# Of a record beside its checkpoints, as those of model=tiny had them: metrics and their views.
ROW_BYTES, EVALUATION_BYTES = 2_500, 45_000


def forward_flops(config: ExperimentConfig, vocab_size: int) -> int:
    """FLOPs of a token's forward in training: what it passes, be it one of many experts.

    Attention is counted over the whole sequence, as it is computed where nothing is left out.
    Where a token's number of experts is a matter of the data, it counts `model.top_k`, but for a
    relu gate or a threshold, which compute all of them in training.
    """
    model, d = config.model, config.model.d_model
    attention = 2 * 4 * d * d + 2 * 2 * config.seq_len * d
    feed_forward = 2 * 3 * d * model.expert_dim * (model.top_k + model.num_shared_experts)
    more = _computed(config) - model.top_k
    routed = 2 * _router_weights(config) + 2 * 3 * d * model.expert_dim * more
    return (
        model.num_layers * (attention + feed_forward)
        + moe_layers(config) * routed
        + 2 * d * vocab_size
    )


def training_flops(config: ExperimentConfig, vocab_size: int) -> int:
    """FLOPs of a token's forward and backward, without the counting pass of `exact`."""
    return 3 * forward_flops(config, vocab_size)


def product_flops(config: ExperimentConfig, sequences: int) -> int:
    """FLOPs of the smaller product of one expert in a pass, at an even load.

    A step consists of many such products, one after the other. Counted as in `forward_flops`.
    """
    model = config.model
    all_rows = 2 * sequences * config.seq_len * model.d_model * model.expert_dim
    if not model.moe:
        return all_rows * (model.top_k + model.num_shared_experts)
    return all_rows * _computed(config) // model.num_experts


def _computed(config: ExperimentConfig) -> int:
    """Experts that compute a token in training."""
    all_of_them = config.router.gate == "relu" or declared(config.method.name).thresholds
    return config.model.num_experts if all_of_them else config.model.top_k


def parameters(config: ExperimentConfig, vocab_size: int) -> int:
    """How many there are, in all experts."""
    model, router, d = config.model, config.router, config.model.d_model
    attention = 4 * d * d + d // model.num_heads
    feed_forward = 3 * d * model.expert_dim * (model.top_k + model.num_shared_experts)
    routed = _router_weights(config) + 3 * d * model.expert_dim * (model.num_experts - model.top_k)
    routed += model.num_experts * (router.gate_bias + router.expert_scale)
    routed += (router.form == "cosine") - 3 * d * model.expert_dim * model.zero_experts
    return (
        model.num_layers * (attention + feed_forward)
        + moe_layers(config) * routed
        + 2 * d * vocab_size
    )


def _router_weights(config: ExperimentConfig) -> int:
    """In the matrices of one router, each of which a token is multiplied by."""
    router, experts, d = config.router, config.model.num_experts, config.model.d_model
    width = max(1, experts // 2) if router.form == "cosine" else d
    hidden = 0 if router.form == "linear" else width * d
    shared = d * config.model.num_shared_experts if router.shared_gate else 0
    return hidden + width * experts + (d * experts if router.noise else 0) + shared


def memory_bytes(config: ExperimentConfig, vocab_size: int) -> int:
    """About the most that training one arm takes: what a pass keeps for its backward, and weights.

    An upper estimate, by which stacks are made; nothing is refused by it.
    """
    model, d, heads = config.model, config.model.d_model, config.model.num_heads
    wide = 8 if config.train.precision == "fp64" else 4
    narrow = BYTES[config.train.precision]
    attention = 12 * d * narrow + 4 * d * wide
    if config.run.device == "cpu":  # where the scores are kept
        attention += 3 * heads * config.seq_len * narrow
    computed = model.num_experts if config.router.gate == "relu" else model.top_k
    routed = computed + model.num_shared_experts
    experts = routed * (3 * d + 6 * model.expert_dim) * narrow + 6 * model.num_experts * wide
    of_token = model.num_layers * (attention + experts) + 4 * vocab_size * wide
    tokens = (config.run.device_bsz or config.global_bsz) * config.seq_len
    # weights, gradients, two moments, a copy while a stack is made, and an average
    copies = 5 + (config.optim.ema > 0)
    return tokens * of_token + copies * parameters(config, vocab_size) * wide


def disk_bytes(config: ExperimentConfig, vocab_size: int) -> int:
    """About what the record of a finished run takes.

    Nearly all of it is in the last checkpoints and, where they are recorded, in the selections.
    """
    wide = 8 if config.train.precision == "fp64" else 4
    steps, run = config.train.steps, config.run
    checkpoints = min(CHECKPOINTS, -(-steps // run.checkpoint_every))
    rows = steps // run.log_every + steps // 10  # and every step of the last tenth
    weights_and_moments = (3 + (config.optim.ema > 0)) * parameters(config, vocab_size) * wide
    small = rows * ROW_BYTES + evaluations(config.train) * EVALUATION_BYTES
    return checkpoints * weights_and_moments + small + _selection_bytes(config)


def _selection_bytes(config: ExperimentConfig) -> int:
    """What `run.record_selections` writes of the steps; of evaluations there is less."""
    if not config.run.record_selections:
        return 0
    slots = moe_layers(config) * config.model.top_k
    of_slot = 1 if config.model.num_experts < 255 else 2
    return config.train.steps * config.global_bsz * routed_len(config) * slots * of_slot


def evaluations(train: TrainConfig) -> int:
    """How often a run is evaluated: before its first step, every so often, and after its last."""
    return 2 + ((train.steps - 1) // train.eval_every if train.eval_every else 0)
