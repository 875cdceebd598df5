"""Metrics of what routers learn: do experts divide the domains, and what pulls at the routers?

Metrics of specialisation are means over layers. Each token takes k of a layer's E experts.
"""

import math
from functools import partial

from moebench.catalogue.metric import Claim, Column, Metric, Random, formula

_SHARE = formula("k/E", lambda experts, top_k: top_k / experts)
_NONE = formula("0", lambda experts, top_k: 0.0)
_measured = partial(Metric, window="validation set")

SPECIALISED = (
    _measured(
        "specialization/domain",
        "mutual information of expert and domain, domains weighted equally, less its mean under "
        "permuted labels; at most log2 of the number of domains",
        unit="bits",
        random=_NONE,
        chart="Information of experts about the domain, bits (none: 0{most})",
        hparam=True,
        printed=True,
        inspected="information on the domain, bits",
        column=Column("load", "domain\nbits", 3),
        claim=Claim("specialises less", "specialises more", "{:.3f} against {:.3f} bits"),
    ),
    _measured(
        "specialization/domain_uncorrected",
        "the same without subtracting the mean under permuted labels",
        unit="bits",
        random=Random("above 0"),
    ),
    _measured(
        "specialization/domain_start",
        "`specialization/domain` at step 0",
        unit="bits",
        taken="first",
        of="specialization/domain",
        column=Column("load", "at\nstart", 3, "at start: before it was trained", optional=True),
    ),
    _measured(
        "specialization/domain_given_token",
        "mutual information of expert and domain given the token that is routed: what script and "
        "vocabulary do not explain; corrected in the same way",
        unit="bits",
        random=_NONE,
        chart="The same, given the token: more than vocabulary, bits (none: 0)",
        inspected="... beyond that of the token",
        column=Column(
            "load", "given\ntoken", 3, "given token: beyond that of the token", optional=True
        ),
    ),
    _measured(
        "specialization/domain_given_token_start",
        "`specialization/domain_given_token` at step 0",
        unit="bits",
        taken="first",
        of="specialization/domain_given_token",
    ),
    _measured(
        "specialization/domain_given_position",
        "mutual information of expert and domain given the place in the sequence; corrected by "
        "permuted labels of whole sequences",
        unit="bits",
        random=_NONE,
    ),
    _measured(
        "specialization/purity",
        "routing purity: how often an expert's commonest domain is that of its token, domains "
        "weighted equally; 1 if no expert serves two domains",
        unit="share",
        random=Random("1 / domains and a little more"),
        chart="Routing purity: tokens of their expert's commonest domain (all: 1)",
        inspected="of their expert's commonest domain",
    ),
    _measured(
        "specialization/largest_share",
        "largest share of a domain's tokens that one expert gets",
        unit="share",
        random=Random("k/E and a little more", _SHARE.value),
        inspected="largest share of a domain's tokens",
    ),
    _measured(
        "specialization/largest_over_even",
        "the largest share of a domain's tokens that one expert gets over the even share k/E, mean "
        "over domains",
        even=1,
        random=Random("a little above 1"),
        inspected="its mean over domains / even share",
    ),
    _measured(
        "specialization/vocabulary",
        "how often a token goes to the expert that its vocabulary entry favours; the favourite and "
        "the frequency come from different sequences",
        unit="share",
        random=_SHARE,
        inspected="tokens at their favourite expert",
    ),
    _measured(
        "specialization/coactivation",
        "how often an expert is chosen together with the expert that it meets most",
        unit="share",
        random=formula(
            "(k − 1)/(E − 1) and a little more",
            lambda experts, top_k: (top_k - 1) / max(1, experts - 1),
        ),
        needs="k above 1",
        inspected="met with the commonest partner",
    ),
    Metric(
        "router/topk_mass",
        "probability of the chosen experts together",
        unit="share",
        random=Random("k/E if uniform", _SHARE.value),
        needs="a gate with probabilities",
        chart="Router probability of the chosen experts (all: 1{random})",
        inspected="probability of the chosen experts",
    ),
    _measured(
        "router/changed",
        "share of the probe's tokens whose experts are not those of the evaluation before",
        unit="share",
        random=formula("1 − 1/C(E, k)", lambda experts, top_k: 1 - 1 / math.comb(experts, top_k)),
        chart="Tokens whose experts changed since the evaluation before (none: 0{random})",
    ),
    _measured(
        "router/saturation",
        "share of the probe's experts at half of the steps that are those of the end",
        unit="share",
        random=_SHARE,
        taken="end",
        inspected="experts settled at half of the run",
    ),
    _measured(
        "router/replay_cost",
        "nats a token with the experts that the same token took in another domain, minus those "
        "with the experts that it took in another sequence of its own domain; two forward passes",
        unit="nats",
        random=_NONE,
        needs="two domains, and as many experts for every token",
        inspected="nats by experts of another domain",
        column=Column(
            "load",
            "replay\ncost",
            4,
            "replay cost: nats by experts of another domain",
            optional=True,
        ),
    ),
    Metric(
        "router/intervention",
        "intervention rate: share of the selected experts that do not have the highest scores",
        unit="share",
        random=Random("0 without a bias; 1 − k/E if it decides alone"),
        needs="a bias or a factor",
        inspected="experts chosen by the bias alone",
    ),
)

FORCES = (
    Metric(
        "forces/cross_entropy",
        "norm of the gradient of the cross-entropy",
        taken="last",
        inspected="router gradient of the loss",
    ),
    Metric(
        "forces/balance",
        "norm of the gradient of the balance terms",
        taken="last",
        per="term",
        needs="balance terms; several for `/<term>`",
        inspected="router gradient of the balance",
    ),
    Metric(
        "forces/cosine",
        "cosine of the two; −1 if balance undoes what the loss wants",
        taken="last",
        per="term",
        needs="balance terms; several for `/<term>`",
        inspected="cosine of the two",
    ),
)
