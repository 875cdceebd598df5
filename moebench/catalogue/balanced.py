"""Metrics of load: are the experts used evenly?

They are means over layers. c are the counts of the E experts of a layer in a window of tokens.
"""

from functools import partial

from moebench.catalogue.metric import Claim, Column, Metric, Random, simulated

_uneven = partial(Metric, direction="lower", even=0)

BALANCED = (
    _uneven(
        "load/max_vio_micro",
        "MaxVio, max c / mean c − 1",
        window="micro-batch",
        random=simulated("micro", "max_vio"),
        chart="MaxVio in a micro-batch: excess load of the fullest expert (even: 0{random})",
        hparam=True,
        printed=True,
        inspected="MaxVio in a micro-batch (even: 0)",
        column=Column("load", "MaxVio\nmicro", 2),
        claim=Claim(
            "keeps micro-batches more even",
            "lets micro-batches be less even",
            "MaxVio micro {:.2f} against {:.2f}",
        ),
    ),
    _uneven(
        "load/max_vio_batch",
        "MaxVio of a whole step",
        random=simulated("batch", "max_vio"),
        chart="MaxVio in a whole step (even: 0{random})",
        printed=True,
        inspected="MaxVio in a step (even: 0)",
        column=Column("load", "MaxVio\nbatch", 2),
    ),
    _uneven(
        "load/max_vio_global",
        "MaxVio of the validation set, its domains weighted as in training",
        window="validation set",
        random=simulated("global", "max_vio"),
        chart="MaxVio in validation (even: 0{random})",
        hparam=True,
        printed=True,
        inspected="MaxVio in validation (even: 0)",
        column=Column("load", "MaxVio\nglobal", 2),
        claim=Claim(
            "keeps the validation set more even",
            "leaves the validation set less even",
            "MaxVio global {:.2f} against {:.2f}",
        ),
    ),
    Metric(
        "load/experts_per_token",
        "experts that a token takes",
        unit="experts",
        window="validation set",
        needs="a router whose tokens take different numbers of experts",
        inspected="experts a token",
        column=Column("load", "experts\na token", 2, optional=True),
    ),
    Metric(
        "load/within_even_share",
        "utilisation: Σᵢ min(fᵢ, 1/E), the share of the load that even shares would hold "
        "(arXiv 2604.07030)",
        unit="share",
        window="validation set",
        direction="higher",
        even=1,
        random=simulated("global", "within_even_share"),
        inspected="load within even shares (even: 1)",
    ),
    Metric(
        "load/normalized_entropy",
        "entropy of the loads / log E",
        window="validation set",
        direction="higher",
        even=1,
        random=simulated("global", "normalized_entropy"),
    ),
    _uneven(
        "load/layers/max_vio_micro",
        "`load/max_vio_micro` of each layer, a list",
        window="micro-batch",
        random=Random("by simulation"),
        taken="never",
        scalars="none",
    ),
    _uneven(
        "load/layers/max_vio_batch",
        "`load/max_vio_batch` of each layer, a list",
        random=Random("by simulation"),
        taken="never",
        scalars="none",
    ),
    Metric(
        "load/utilization",
        "c / mean c of each expert of a layer, a list; TensorBoard shows a histogram",
        window="validation set",
        even=1,
        taken="never",
        per="layer",
        whole=False,
    ),
    Metric(
        "train/balance_loss",
        "balance loss of what is trained, without its coefficient; of several terms the mean, "
        "weighted as in the objective",
        direction="lower",
        even=1,
        needs="balance terms",
    ),
    Metric(
        "train/balance_loss_micro",
        "balance loss over micro-batches, whatever is trained",
        window="micro-batch",
        direction="lower",
        even=1,
        chart="Balance loss in a micro-batch (even: 1)",
        inspected="over micro-batches (even: 1)",
    ),
    Metric(
        "train/balance_loss_global",
        "balance loss over the whole step, whatever is trained",
        direction="lower",
        even=1,
        chart="Balance loss in a whole step (even: 1)",
        inspected="over whole steps (even: 1)",
    ),
    _uneven(
        "load/cv",
        "standard deviation of c over its mean",
        random=simulated("batch", "cv"),
        inspected="deviation / mean, step (even: 0)",
    ),
    _uneven(
        "load/gini",
        "Gini coefficient of c",
        random=simulated("batch", "gini"),
        inspected="Gini coefficient, step (even: 0)",
    ),
    Metric(
        "load/entropy",
        "exp(entropy of the loads) / E",
        direction="higher",
        even=1,
        random=simulated("batch", "entropy"),
        chart="Entropy of the load: exp(H) / experts (even: 1{random})",
        inspected="exp(entropy) / E, step (even: 1)",
        column=Column("load", "load\nentropy", 3),
    ),
    _uneven(
        "load/dead_experts",
        "share of the experts with c = 0",
        unit="share",
        random=simulated("batch", "dead_experts", "(1 − k/E)^tokens"),
        chart="Dead experts: share that no token of a step chose",
        inspected="share of dead experts in a step",
        column=Column("load", "dead\nshare", 3),
        claim=Claim(
            "leaves fewer experts dead", "leaves more experts dead", "{:.1f} against {:.1f}"
        ),
    ),
    _uneven(
        "load/dead_experts_global",
        "share of the experts with c = 0 in the validation set",
        unit="share",
        window="validation set",
        random=simulated("global", "dead_experts", "(1 − k/E)^tokens"),
        inspected="... and in validation",
    ),
)
