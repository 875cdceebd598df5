"""Metrics of the optimisation: how does training go?"""

from moebench.catalogue.metric import Metric

TRAINING = (
    Metric("train/grad_norm", "norm of the gradient of all parameters, before clipping"),
    Metric("train/lr", "learning rate"),
    Metric("train/z_loss", "z-loss of the routers, without its coefficient"),
    Metric(
        "train/penalty",
        "penalty that methods add to the objective",
        needs="a method with a penalty",
    ),
    Metric(
        "train/balance_weight",
        "sum of the balance terms' weights in this step",
        needs="a term that starts or stops",
    ),
    Metric(
        "balance/gradient_error",
        "|g − g*| / |g*| of the routers' balance gradient g and the exact one g*",
        direction="lower",
        needs="`balance.estimator_error`",
    ),
    Metric(
        "balance/gradient_cosine",
        "cosine of g and g*",
        direction="higher",
        needs="`balance.estimator_error`",
    ),
    Metric(
        "method/bias_range",
        "largest less smallest bias of a layer's experts",
        needs="a method with a bias",
    ),
    Metric("method/weight", "weight of the L1 penalty", needs="`method=remoe`"),
    Metric(
        "method/active_experts",
        "experts of a layer that exist by now",
        needs="`router=growing` or `router=pruning`",
    ),
    Metric(
        "method",
        "what a method of your own returns from `metrics()`",
        per="name",
        whole=False,
        needs="a plugin",
    ),
)
