"""Methods that act on the selection of experts: by a bias, or in place of top-k."""

from moebench.methods.declaration import Declaration, Option, flag

SU = "kexue.fm 11760"
TRINITY = "arXiv 2602.17004"

SELECTING = (
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
            "logits": flag("select by raw logits, and not by the gate's scores", source="Kolibri"),
        },
        offsets=True,
        by_logits="logits",
        source="arXiv 2408.15664",
        equation="select by s + b, b ← b + u sign(mean c − c)",
        tested="`test_bias.py`: [10, 0], u 0.1 → [−0.1, 0.1]",
    ),
    Declaration(
        "smebu",
        "a bias that follows the load by clamped steps with momentum (arXiv 2602.17004)",
        "moebench.balance.controlled:Smebu",
        {
            "rate": Option(5e-4, "lambda: the largest step of the bias", above=0, source=TRINITY),
            "momentum": Option(
                0.5, "beta: decay of the average of steps", low=0, below=1, source=TRINITY
            ),
            "sharpness": Option(
                2, "kappa: factor of the load's error in tanh", above=0, source=TRINITY
            ),
        },
        offsets=True,
        source="arXiv 2602.17004 (Arcee Trinity)",
        equation="m ← β m + (1 − β) λ centred(tanh(κ (1 − u))), b ← b + m",
        tested="`test_controlled.py`: a loop of three steps",
    ),
    Declaration(
        "budget",
        "a bias that has a share of a token's experts compute, beside zero-computation experts",
        "moebench.balance.controlled:Budget",
        {
            "rate": Option(0.1, "mu: factor of the error of an expert's share", above=0),
            "share": Option(
                0.6667,
                "of a token's experts, those that compute on average",
                above=0,
                high=1,
                needs="model.zero_experts",
                source="LongCat-Flash: 8 of 12",
            ),
            "zero_experts": Option("model.zero_experts", "zero-computation experts", whole=True),
        },
        offsets=True,
        source="LongCat-Flash, arXiv 2509.01322, section 2.1.1",
        equation="b_i ← b_i + μ (share / N − c_i / Σ c) for the N experts that compute",
        tested="`test_controlled.py`: (10, 10, 20) gives (0.0083, 0.0083, 0)",
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
        source="Su, kexue.fm 11619; Megatron-LM `qb_dual_update`",
        equation=(
            "α = the (k+1)-th of s + b in a row; b = −(the (⌊Tk/E⌋+1)-th of s − α in a "
            "column), centred"
        ),
        tested=(
            "`test_quantile.py`: loads (4, 4, 0, 0) → (2, 2, 2, 2); 1.5 of the union, 1.0 of "
            "two means"
        ),
    ),
    Declaration(
        "threshold",
        "every expert takes the tokens above a threshold that follows quantiles (arXiv 2603.11535)",
        "moebench.balance.threshold:Threshold",
        {
            "decay": Option(
                0.99,
                "of the moving average of quantiles",
                low=0,
                below=1,
                source="Expert Threshold 0.99; kexue.fm 11626: 0.9",
            ),
            "top_k": Option("model.top_k", "experts a token on average", low=1, whole=True),
            "logits": flag(
                "read and select by raw logits, and not by the gate's scores",
                source="Expert Threshold",
            ),
        },
        offsets=True,
        thresholds=True,
        by_logits="logits",
        source="arXiv 2603.11535; Su, kexue.fm 11626",
        equation="t → e where s_te > c_e; c ← average of the 1 − k/E quantiles of columns",
        tested="`test_threshold.py`: loads (4, 4, 4, 4) of 8 tokens; a loop; causal",
    ),
    Declaration(
        "moving_quantile",
        "quantile balancing within each sequence so far, and over the step (kexue.fm 11760)",
        "moebench.balance.moving:MovingQuantile",
        {
            "strength": Option(0.3, "lambda: of the shift within a sequence", low=0, source=SU),
            "memory": Option(0.99, "g: decay of a token's weight", above=0, below=1, source=SU),
            "bins": Option(100, "into which scores are sorted", low=2, whole=True, source=SU),
        },
        offsets=True,
        shifts=True,
        gates=("softmax", "sigmoid"),
        source="Su, kexue.fm 11760",
        equation="select by s − λ r + b, r = the 1 − k/E quantile of the tokens so far",
        tested="`test_moving.py`: a loop over bins; causal",
    ),
    Declaration(
        "causal_bias",
        "select by scores less the average of those of earlier tokens (jonathanc.net)",
        "moebench.balance.moving:CausalBias",
        {
            "strength": Option(1, "lambda: of the shift", low=0),
            "memory": Option(0.99, "g: decay of a token's weight", above=0, below=1),
        },
        offsets=True,
        shifts=True,
        source="jonathanc.net, in part",
        equation="select by s − λ (average of s over the tokens before)",
        tested="`test_moving.py`: a loop; causal",
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
        source="arXiv 2202.09368",
        equation="each expert takes its c = ⌈factor · T k / E⌉ highest tokens",
        tested="`test_assignment.py`: a loop; 50.5 bits",
    ),
    Declaration(
        "base",
        "the even assignment of the largest total score, in training (arXiv 2103.16716)",
        "moebench.balance.assignment:Base",
        stackable=False,
        assigns=True,
        source="arXiv 2103.16716",
        equation="the even assignment of the largest Σ z",
        tested="`test_assignment.py`: all permutations",
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
        source="arXiv 2202.01169, tolerance of Megatron-LM",
        equation="top-k of z + u + v with even marginals",
        tested="`test_assignment.py`: rows and columns scaled in turn",
    ),
)
