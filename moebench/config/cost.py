"""What a step costs, counted from the shapes of a config: FLOPs and memory.

A product of [m, k] and [k, n] is 2 m k n FLOPs; of everything else there is little. A backward is
two products for each of the forward's.
"""

from moebench.config.schema import ExperimentConfig

BYTES = {"fp32": 4, "bf16": 2, "fp64": 8}


def forward_flops(config: ExperimentConfig, vocab_size: int) -> int:
    """FLOPs of a token's forward: what it passes, be it one of many experts.

    Attention is counted over the whole sequence, as it is computed where nothing is left out.
    """
    model, d = config.model, config.model.d_model
    attention = 2 * 4 * d * d + 2 * 2 * config.seq_len * d
    router = 2 * d * model.num_experts
    experts = 2 * 3 * d * model.expert_dim * (model.top_k + model.num_shared_experts)
    return model.num_layers * (attention + router + experts) + 2 * d * vocab_size


def training_flops(config: ExperimentConfig, vocab_size: int) -> int:
    """FLOPs of a token's forward and backward, without the counting pass of `exact`."""
    return 3 * forward_flops(config, vocab_size)


def parameters(config: ExperimentConfig, vocab_size: int) -> int:
    """How many there are, in all experts."""
    model, d = config.model, config.model.d_model
    experts = 3 * d * model.expert_dim * (model.num_experts + model.num_shared_experts)
    layer = 4 * d * d + d // model.num_heads + d * model.num_experts + experts
    return model.num_layers * layer + 2 * d * vocab_size


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
    routed = model.top_k + model.num_shared_experts
    experts = routed * (3 * d + 6 * model.expert_dim) * narrow + 6 * model.num_experts * wide
    of_token = model.num_layers * (attention + experts) + 4 * vocab_size * wide
    tokens = (config.run.device_bsz or config.global_bsz) * config.seq_len
    # weights, gradients, two moments, and a copy while a stack is made
    return tokens * of_token + 5 * parameters(config, vocab_size) * wide
