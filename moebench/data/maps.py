"""Maps of prescribed routers: which experts a token, a sequence or a domain gets in each layer.

A map is a table with a row for each token, for each remainder of a sequence's hash, or for each
pair of one of these with a domain. It is made from the training text and a seed, and training does
not change it. Each layer has draws of its own, so that the layers are independent partitions.

    hash           a row a token (Hash Layers, arXiv 2106.04426)
    sequence_hash  a row a remainder of the hash of the sequence's first tokens
    domain         the domain picks its own experts, the hash of the sequence some of them
    domain_token   the domain picks its own experts, the token some of them

Loads are even on the training text: tokens are assigned by their frequency, not by a modulus. A
token too frequent for that (the blank is a quarter of some text) has several rows, which take turns
by the token's position in the sequence. Arithmetic is in whole numbers, so that a map has the same
bits on every machine.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moebench.config.replayed import replays
from moebench.config.schema import ExperimentConfig
from moebench.config.treatment import map_layers
from moebench.contents import arrays_from
from moebench.data.corpus import Corpus
from moebench.data.draws import key, permutation
from moebench.data.recording import check_recording
from moebench.data.turns import shares as shares_of
from moebench.errors import ConfigError, RecordError

BY_TOKEN = ("hash", "domain_token")
BY_DOMAIN = ("domain", "domain_token")
KINDS = {*BY_TOKEN, *BY_DOMAIN, "sequence_hash"}
PREFIX = 16  # tokens of a sequence that its hash depends on
ROUNDS = 16  # orders of the experts behind the rows of a hash: each expert is in as many rows
MOST_EXPERTS = 2**15 - 1
SCALE = 30  # bits of a domain's frequencies
CHUNK = 1 << 22  # tokens counted at a time
SHAPES = {"kind": "text", "domains": "int", "turns": "int", "table": "int layers rows experts"}

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RoutingMap:
    """The experts that a prescribed router may select.

    Attributes:
        kind: `hash`, `sequence_hash`, `domain` or `domain_token`.
        table: int16 [layers, rows, experts of a row], of the first layers with a router. Rows are
            sorted by domain, if the domain counts, then by token or remainder, then by turn.
        domains: that count; 1 if the domain does not.
        turns: rows of each token, which are equal unless the token is too frequent for one.
    """

    kind: str
    table: npt.NDArray[np.int16]
    domains: int = 1
    turns: int = 1

    @property
    def rows_of_domain(self) -> int:
        """Tokens times turns, or remainders of a hash."""
        return self.table.shape[1] // self.domains

    @property
    def hash(self) -> str:
        """Hex digest of the whole map."""
        about = repr((self.kind, self.domains, self.turns, self.table.shape)).encode()
        return hashlib.sha256(about + self.table.astype("<i2").tobytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The content of a file."""
        file = io.BytesIO()
        about = {"kind": self.kind, "domains": self.domains, "turns": self.turns}
        np.savez_compressed(file, allow_pickle=False, table=self.table, **about)
        return file.getvalue()


def from_bytes(content: bytes, path: str, *, vocabulary: int, experts: int) -> RoutingMap:
    """The map in a file.

    Args:
        path: of the file, for errors.
        vocabulary: tokens of the model, those that name domains included.
        experts: of each layer of the model.

    Raises RecordError for a file that is not a map, or is one of other tokens or experts.
    """
    try:
        arrays = arrays_from(content, SHAPES, *SHAPES)
    except ValueError as error:
        raise RecordError(
            f"{path}: is not a map of experts ({error}); train the run again"
        ) from None
    domains, turns = int(arrays["domains"]), int(arrays["turns"])
    made = RoutingMap(str(arrays["kind"]), arrays["table"], domains, turns)
    sound = made.kind in KINDS and domains > 0 < turns and made.table.size > 0
    sound = sound and made.table.shape[1] % (domains * turns) == 0
    if not sound or made.table.min() < 0 or made.table.max() >= experts:
        raise RecordError(f"{path}: is not a map of {experts} experts; train the run again")
    if made.kind in BY_TOKEN and made.rows_of_domain != vocabulary * turns:
        raise RecordError(
            f"{path}: has experts for {made.rows_of_domain // turns} tokens, and the model has "
            f"{vocabulary}; restore the map of this run"
        )
    return made


def check_map(config: ExperimentConfig, corpus: Corpus) -> None:
    """Raise ConfigError for a prescribed router that these domains or a recording do not allow."""
    kind, experts = config.router.map, config.model.num_experts
    if not map_layers(config):
        return
    if replays(config):
        check_recording(config, corpus)
        return
    if experts > MOST_EXPERTS:
        raise ConfigError(
            f"model.num_experts={experts}: router.map={kind} has at most {MOST_EXPERTS}; lower it"
        )
    if kind not in BY_DOMAIN:
        return
    domains, top_k = len(corpus.domains), config.model.top_k
    if domains == 1:
        raise ConfigError(
            f"router.map={kind}: all text is of one domain, {corpus.domains[0]}; use "
            f"router={'sequence_hash' if kind == 'domain' else 'hash'}, or add domains"
        )
    least = 2 * top_k * domains if kind == "domain_token" else top_k * domains
    if experts < least:
        own = "2 * model.top_k" if kind == "domain_token" else "model.top_k"
        raise ConfigError(
            f"model.num_experts={experts}: router.map={kind} gives each of {domains} domains at "
            f"least {own} experts of its own; use at least {least}, or fewer data.domains"
        )


def make_map(config: ExperimentConfig, corpus: Corpus) -> RoutingMap | None:
    """The map of a run's prescribed router; None if it has none of these maps.

    It depends on the run's seed, so that means over seeds are means over maps, too.
    """
    layers = map_layers(config)
    if not layers or replays(config):
        return None
    model = config.model
    recipe = (config.router.map, layers, model.num_experts, model.top_k, config.seed)
    named = config.seq_len if config.data.domain_token else None
    return _made(corpus, recipe, shares_of(corpus, config.data), named)


@lru_cache(maxsize=4)
def _made(
    corpus: Corpus,
    recipe: tuple[str, int, int, int, int],
    shares: tuple[int, ...],
    named: int | None,
) -> RoutingMap:
    """The map of a recipe.

    Args:
        recipe: kind, layers, experts, top_k and seed.
        shares: of the domains in training.
        named: tokens of text in a sequence, if one more comes first that names the domain.
    """
    kind, layers, experts, top_k, seed = recipe
    domains = len(shares) if kind in BY_DOMAIN else 1
    own = [own_experts(experts, domains, top_k, seed, "own", layer) for layer in range(layers)]
    size, turns, weights = own[0].shape[1], 1, None
    if kind in BY_TOKEN:
        weights = token_weights(corpus, shares, named)
        weights = weights if domains > 1 else weights.sum(0, keepdims=True)
        turns = max(turns_needed(weight, size, top_k) for weight in weights)
    table = []
    for layer, sets in enumerate(own):
        for d in range(domains):
            parts = seed, "map", layer, d
            if weights is None:
                rows = drawn_rows(size, top_k, *parts)
            else:
                rows = assigned_in_turns(weights[d], turns, size, top_k, *parts)
            table.append(sets[d][rows])
    return RoutingMap(
        kind, np.stack(table).astype(np.int16).reshape(layers, -1, top_k), domains, turns
    )


def token_weights(corpus: Corpus, shares: Sequence[int], named: int | None = None) -> Ints:
    """[domains, vocabulary] how often each token is routed in training, in whole numbers.

    A token that a domain's training text lacks has a weight of 1, so that such tokens spread.

    Args:
        shares: of the domains in training.
        named: tokens of text in a sequence, if one more comes first that names the domain.
    """
    weights = []
    for d, (name, share) in enumerate(zip(corpus.domains, shares, strict=True)):
        counts, stream = np.zeros(corpus.vocab_size, np.int64), corpus.train(name)
        for start in range(0, len(stream), CHUNK):
            part = stream[start : start + CHUNK].astype(np.int64)
            counts += np.bincount(part, minlength=len(counts))
        # exact, in whole numbers of any size
        scaled = [share * (int(count) << SCALE) // len(stream) * (named or 1) for count in counts]
        if named is not None:
            scaled += [(share << SCALE) * (d == other) for other in range(len(shares))]
        weights.append(np.array(scaled, np.int64) + 1)
    return np.stack(weights)


def turns_needed(weight: Ints, experts: int, top_k: int) -> int:
    """Rows of a token, so that the heaviest token fits into the even share of its experts."""
    return -(-int(weight.max()) // max(1, int(weight.sum()) * top_k // experts))


def assigned_in_turns(
    weight: Ints, turns: int, experts: int, top_k: int, *parts: int | str
) -> Ints:
    """[tokens * turns, top_k] experts of each token at each turn; `assigned` makes them.

    The turns of a token that is heavier than an even share are items of their own; those of any
    other token are one item.
    """
    split = weight > int(weight.sum()) * top_k // experts
    size = np.where(split, turns, 1)
    first = np.concatenate([[0], size.cumsum()[:-1]])
    items = np.repeat(weight // size, size)
    item = first[:, None] + np.arange(turns) % size[:, None]
    return assigned(items, experts, top_k, *parts)[item.ravel()]


def assigned(weight: Ints, experts: int, top_k: int, *parts: int | str) -> Ints:
    """[items, top_k] distinct experts of each item, so that experts have even loads.

    Items come from the heaviest to the lightest. An item gets random experts among those that have
    room for it within an even share; where too few have, the least loaded of all. The known rule
    takes the least loaded at once (longest processing time first), but then the heaviest items lie
    apart in every layer, and the layers are no independent partitions.

    Args:
        weight: of each item, in each of its experts.
        parts: the key of the draws.
    """
    order = permutation(len(weight), *parts, "order")
    order = order[np.argsort(-weight[order], kind="stable")]
    draws = np.random.Philox(key=key(*parts, "expert")).random_raw((len(weight), top_k)).tolist()
    ties = permutation(experts, *parts, "ties").tolist()
    even = int(weight.sum()) * top_k // experts
    load, rows = [0] * experts, np.empty((len(weight), top_k), np.int64)
    for item, drawn in zip(order.tolist(), draws, strict=True):
        own = int(weight[item])
        room = [expert for expert in range(experts) if load[expert] + own <= even]
        if len(room) >= top_k:
            chosen = [room.pop(draw % len(room)) for draw in drawn]
        else:
            chosen = sorted(range(experts), key=lambda x: (load[x], ties[x]))[:top_k]
        for expert in chosen:
            load[expert] += own
        rows[item] = chosen
    return rows


def drawn_rows(experts: int, top_k: int, *parts: int | str) -> Ints:
    """[rows, top_k] distinct experts, random ones, with each expert in as many rows as any other.

    Behind them are ROUNDS random orders of the experts. Each order gives a row for each expert: the
    `top_k` that follow one another, in a circle.
    """
    orders = [permutation(experts, *parts, number) for number in range(ROUNDS)]
    place = (np.arange(experts)[:, None] * top_k + np.arange(top_k)) % experts
    return np.concatenate([order[place] for order in orders])


def own_experts(experts: int, domains: int, top_k: int, *parts: int | str) -> Ints:
    """[domains, own] the experts of each domain: max(top_k, experts // domains), and no other's."""
    size = max(top_k, experts // domains)
    assert size * domains <= experts, "refused by check_map"
    return permutation(experts, *parts)[: domains * size].reshape(domains, size)
