"""Methods and routers: what cannot go together, and the defaults of a method's options."""

from collections.abc import Iterator
from dataclasses import replace

from moebench.config.schema import ExperimentConfig
from moebench.config.treatment import (
    default_option,
    lookup,
    map_layers,
    moe_layers,
    router_bsz,
)
from moebench.errors import ConfigError, remedy
from moebench.methods import LOSS, Declaration, Option, declared
from moebench.ranges import check_divides
from moebench.registry import content_of

Contradictions = Iterator[tuple[bool, str]]  # whether something is wrong, and the error


def check_router(config: ExperimentConfig) -> None:
    """Raise ConfigError for what routers, methods and models cannot do together."""
    for contradictions in (
        _method_contradictions(config),
        _gate_contradictions(config),
        _group_contradictions(config),
        _expert_contradictions(config),
        _map_contradictions(config),
        _prescription_contradictions(config),
    ):
        for wrong, error in contradictions:
            if wrong:
                raise ConfigError(error)


def _method_contradictions(config: ExperimentConfig) -> Contradictions:
    model, router, name = config.model, config.router, config.method.name
    method = declared(name)
    yield (
        not model.moe and name != LOSS,
        f"model.moe=false: has no router for method={name} to balance; use method=loss",
    )
    yield (
        model.dense_layers >= model.num_layers,
        f"model.dense_layers={model.dense_layers}: must be below model.num_layers="
        f"{model.num_layers}; model.moe=false makes all dense",
    )
    for key, value, fit in (
        ("gate", router.gate, method.gates),
        ("form", router.form, method.forms),
    ):
        yield (
            bool(fit) and value not in fit,
            f"method={name}: is for router.{key}={' or '.join(fit)}, and not for {value}; use "
            f"router.{key}={fit[0] if fit else value}",
        )
    both = [name for name in ("multiplicative", "logits") if config.method.options.get(name)]
    yield (
        len(both) > 1,
        "method.options.multiplicative=1: multiplies scores, and method.options.logits=1 selects "
        "by logits, which may be below 0; leave one of them out",
    )
    if method.offsets or method.assigns:
        why = "moves scores" if method.offsets else "assigns experts"
        yield (
            router.gate == "relu" or (method.assigns and router.gate == "sparsemax"),
            f"method={name}: {why}, and router.gate={router.gate} selects every expert with a "
            "score above 0; use another gate",
        )
        for key, does in (("random", "draws experts"), ("round_robin", "takes them in turn")):
            yield (
                getattr(router, key),
                f"method={name}: {why}, and router.{key} {does}; leave one of them out",
            )
    if method.assigns or method.thresholds:
        for key, value in (
            ("router.capacity_factor", router.capacity_factor),
            ("router.start_experts", router.start_experts),
            ("router.prune_below", router.prune_below),
            ("router.expert_groups", router.expert_groups if router.expert_groups > 1 else None),
        ):
            yield (
                bool(value),
                f"{key}={value}: does not go with method={name}, which gives each expert its "
                f"tokens; leave out {key}",
            )


def _gate_contradictions(config: ExperimentConfig) -> Contradictions:
    router = config.router
    yield (
        config.model.moe and config.model.top_k == 1 and router.gate == "topk_softmax",
        "model.top_k=1: with router.gate=topk_softmax every weight is 1, and routers get no "
        "gradient of the cross-entropy; use router.gate=softmax",
    )
    yield (
        router.capacity_factor is None and router.drop != "probability",
        f"router.drop={router.drop}: a dropless router drops nothing; add "
        "router.capacity_factor=1.25",
    )
    yield (
        router.group_bsz is not None and router_bsz(config) is None,
        f"router.group_bsz={router.group_bsz}: is for router.capacity_factor and for methods that "
        "assign experts; leave it out",
    )
    yield (
        router.shared_gate and not config.model.num_shared_experts,
        "router.shared_gate=true: there are no shared experts; set model.num_shared_experts",
    )
    yield (
        router.shared_gate and not router.renormalize,
        "router.shared_gate=true: shares the sum of renormalised weights; leave out "
        "router.renormalize=false",
    )
    yield (
        router.shared_gate and router.gate in ("relu", "sparsemax"),
        f"router.shared_gate=true: is for gates whose scores are above 0, and not for "
        f"router.gate={router.gate}",
    )
    others = ("random", router.random), ("round_robin", router.round_robin)
    for key, there in (*others, ("expert_groups", router.expert_groups > 1)):
        yield (
            router.gate == "relu" and there,
            f"router.gate=relu: selects every expert with a score above 0, and not by "
            f"router.{key}; leave one of them out",
        )
    yield (
        router.round_robin and (router.random or router.expert_groups > 1),
        "router.round_robin=true: takes experts in turn; leave out router.random and "
        "router.expert_groups",
    )


def _map_contradictions(config: ExperimentConfig) -> Contradictions:
    router, data = config.router, config.data
    yield (
        data.domain_token and data.mask_documents,
        "data.domain_token=true: attention would hide it from all documents of a sequence but the "
        "first; leave out data.mask_documents",
    )
    yield (
        data.domain_token and bool(data.heldout),
        f"data.domain_token=true: the token of a held-out domain ({', '.join(data.heldout)}) would "
        "never be trained; leave out data.heldout",
    )
    yield (
        router.map == "none" and router.hash_layers is not None,
        f"router.hash_layers={router.hash_layers}: is for a prescribed router; add router=hash",
    )
    yield (
        router.map == "replay" and router.replay is None,
        "router.map=replay: needs router.replay=RUN, a run with recorded selections "
        "(run.record_selections=true)",
    )
    yield (
        router.map != "replay" and router.replay is not None,
        f"router.replay={router.replay}: is for router.map=replay; add router=replay",
    )


def _prescription_contradictions(config: ExperimentConfig) -> Contradictions:
    router, data, method = config.router, config.data, declared(config.method.name)
    if router.map == "none" or not config.model.moe:
        return
    layers = moe_layers(config)
    yield (
        (router.hash_layers or 1) > layers,
        f"router.hash_layers={router.hash_layers}: must be at most the {layers} layers with a "
        "router",
    )
    yield (
        router.map in ("domain", "domain_token") and bool(data.heldout),
        f"router.map={router.map}: a held-out domain ({', '.join(data.heldout)}) has no experts; "
        "leave out data.heldout, or use router=hash",
    )
    yield (
        config.balance.counts == "first",
        f"balance.counts=first: router.map={router.map} prescribes experts in no order; leave one "
        "of them out",
    )
    for key, wrong in (
        ("router.gate", router.gate in ("relu", "sparsemax")),
        ("router.random", router.random),
        ("router.round_robin", router.round_robin),
        ("router.expert_groups", router.expert_groups > 1),
        ("router.start_experts", router.start_experts is not None),
        ("router.prune_below", router.prune_below > 0),
        (
            "method.name",
            method.assigns
            or method.thresholds
            or (method.offsets and map_layers(config) == layers),
        ),
    ):
        yield (
            wrong,
            f"{key}={lookup(config, key)}: would select experts, and router.map={router.map} "
            "prescribes them; leave one of them out",
        )


def _group_contradictions(config: ExperimentConfig) -> Contradictions:
    size = router_bsz(config)
    if size is None:
        return
    key = "micro_bsz" if config.router.group_bsz is None else "router.group_bsz"
    device_bsz, valid = config.run.device_bsz, config.data.valid_sequences
    yield (
        config.global_bsz % size > 0,
        f"{key}={size}: must divide global_bsz={config.global_bsz}, which is made of such groups",
    )
    yield (
        device_bsz is not None and device_bsz % size > 0,
        f"run.device_bsz={device_bsz}: would split the router's groups of {key}={size}; use a "
        "multiple",
    )
    yield (
        config.router.capacity_factor is not None and valid % size > 0,
        f"data.valid_sequences={valid}: must be a multiple of {key}={size}, the router's groups",
    )


def _expert_contradictions(config: ExperimentConfig) -> Contradictions:
    model, router = config.model, config.router
    experts, groups, start = model.num_experts, router.expert_groups, router.start_experts
    yield (
        experts % groups > 0,
        f"router.expert_groups={groups}: must divide model.num_experts={experts}",
    )
    yield (
        router.group_worth != "top_two" and router.top_groups >= groups,
        f"router.group_worth={router.group_worth}: ranks groups of experts; add "
        "router.expert_groups and router.top_groups",
    )
    yield (
        model.zero_experts >= experts,
        f"model.zero_experts={model.zero_experts}: must be below model.num_experts={experts}",
    )
    yield (
        router.top_groups > groups,
        f"router.top_groups={router.top_groups}: must be between 1 and router.expert_groups="
        f"{groups}",
    )
    yield (
        model.top_k * groups > router.top_groups * experts,
        f"router.top_groups={router.top_groups}: holds {router.top_groups * experts // groups} "
        f"experts, and model.top_k={model.top_k} are needed",
    )
    yield (
        start is not None and not model.top_k <= start <= experts,
        f"router.start_experts={start}: must be between model.top_k={model.top_k} and "
        f"model.num_experts={experts}",
    )
    yield (
        groups > 1 and (start is not None or router.prune_below > 0),
        f"router.expert_groups={groups}: a group could be left without experts by "
        f"router.{'start_experts' if start is not None else 'prune_below'}; leave one of them out",
    )


def check_method(config: ExperimentConfig) -> None:
    """Raise ConfigError for a method or an option that does not exist, or cannot work."""
    method, options = declared(config.method.name), config.method.options
    if method.name == LOSS and options:
        first = next(iter(options))
        raise ConfigError(
            f"method.options.{first}={options[first]:g}: method=loss has no options; choose a "
            "method, as in method=bias"
        )
    recorded = config.method.plugin
    if recorded and method.plugin is None:
        raise ConfigError(
            f"method.plugin={recorded}: method={method.name} is of no plugin; set "
            "method.plugin=null"
        )
    if recorded and content_of(recorded) != content_of(method.plugin):
        raise ConfigError(
            f"method.plugin={config.method.plugin}: is another version than that at hand, "
            f"{method.plugin}; method.plugin=null takes what is at hand"
        )
    for key, value in options.items():
        _check_option(config, method, key, value)
    for key, option in method.options.items():
        _check_needs(config, key, option, options.get(key, default_option(config, option)))


def _check_option(config: ExperimentConfig, method: Declaration, key: str, value: float) -> None:
    subject = f"method.options.{key}={value:g}"
    if key not in method.options:
        raise ConfigError(
            f"{subject}: method={method.name} has no such option; {remedy(key, method.options)}"
        )
    option = method.options[key]
    option.check(subject, value)
    if option.divides:
        total = lookup(config, option.divides)
        check_divides(f"method.options.{key}", int(value), option.divides, total)


def _check_needs(config: ExperimentConfig, key: str, option: Option, value: float) -> None:
    """Refuse a value that another key does not allow."""
    subject, passes = f"method.options.{key}={value:g}", config.run.device_bsz
    if option.whole_groups and passes is not None and passes % int(value):
        raise ConfigError(
            f"run.device_bsz={passes}: would split the groups of {subject}; use a multiple"
        )
    if option.needs and value and not lookup(config, option.needs):
        raise ConfigError(
            f"{subject}: needs {option.needs}, which is {lookup(config, option.needs):g}; set it, "
            f"or method.options.{key}=0"
        )


def complete_method(config: ExperimentConfig) -> ExperimentConfig:
    """The config with every option of its method, in one order, and the plugin it comes from."""
    method, given = declared(config.method.name), config.method.options
    if method.name == LOSS:
        return config
    options = {
        key: given.get(key, default_option(config, option))
        for key, option in method.options.items()
    }
    return replace(config, method=replace(config.method, options=options, plugin=method.plugin))
