"""Headroom in a grid and in words: what routing could buy here, and what that does not mean."""

from moebench.report.infer.arms import Table
from moebench.report.infer.headroom import Headroom, Place, headroom, is_dense
from moebench.report.infer.statistics import FEWEST_SEEDS, Estimate
from moebench.report.show.blocks import Block, Cell, Grid, Sentences
from moebench.report.show.numbers import estimate_cell, four_decimals, interval, listed

NAMES = {
    "T": "by token",
    "TD": "by domain and token",
    "S": "by sequence",
    "D": "by domain and sequence",
}


def blocks(table: Table) -> list[Block]:
    """What a table with prescribed routers says of headroom; nothing for any other."""
    result = headroom(table)
    if result is None:
        return []
    return [_grid(result), Sentences("What routing could buy here", _sentences(result))]


def _grid(result: Headroom) -> Grid:
    rows = [
        [
            (place.arm.name, f"{place.role}: {NAMES[place.role]}" if place.role else ""),
            (str(len(place.arm.seeds)), ""),
            (four_decimals(place.nats), ""),
            estimate_cell(place.to_token),
            estimate_cell(place.to_domain_token),
        ]
        for place in result.places
    ]
    for name, words, value in (
        ("H = T - TD", "the domain, for a router that knows the token", result.by_token),
        ("S - D", "the domain, for one that does not", result.by_sequence),
    ):
        if value is not None:
            blank: Cell = ("", "")
            rows.append([(name, words), blank, estimate_cell(value), blank, blank])
    return Grid(
        title="Headroom, in validation nats a byte",
        caption="Prescribed routers send tokens by a fixed map, T, TD, S and D; their gates learn. "
        "Differences are paired by seed, with 95 % intervals of one difference alone where there "
        "are three seeds; nothing here is tested.",
        headers=["arm", "seeds", "nats a\nbyte", "less T", "less TD"],
        rows=rows,
    )


def _sentences(result: Headroom) -> list[str]:
    text = []
    if result.by_token is not None:
        text.append(
            "H = T - TD: to know the domain beside the token "
            + _worth(
                result.by_token,
                "No scope can be told from another by what it does for "
                "the domains, where there is nothing to be had.",
            )
        )
    if result.by_sequence is not None:
        text.append(
            "S - D: to keep a domain's sequences together, whatever their tokens, "
            + _worth(result.by_sequence, "")
        )
    behind = [place.arm.name for place in result.places if place.behind and place.learned]
    if behind:
        text.append(
            f"{listed(behind)}: behind T in every seed. A learned router behind a hash of the "
            "token is one that has not learned yet: differences of such arms say little of arms "
            "that have."
        )
    ahead = [place.arm.name for place in result.places if _beats(place)]
    if ahead:
        text.append(
            f"{listed(ahead)}: ahead of TD. A learned router may use more than token and domain."
        )
    text.append(
        "Prescribed routing is no upper bound for routing by token and context: it knows nothing "
        "of the context, its experts are a guess, and its loads are even by design."
    )
    dense = next((place for place in result.places if is_dense(place.arm)), None)
    if dense is not None and dense.to_token is not None:
        text.append(
            f"The dense model, of as many active parameters, is {_signed(dense.to_token)} than T: "
            "what experts buy at all."
        )
    if not result.equal_knowledge:
        text.append(
            "Not all arms read a token that names the domain (data.domain_token=true): those that "
            "do, and those that the domain routes, know more than the others."
        )
    if result.seeds < FEWEST_SEEDS:
        text.append("Fewer than three seeds give no interval: all of this describes these runs.")
    return text


def _worth(value: Estimate, if_nothing: str) -> str:
    """The end of a sentence on what something is worth."""
    number = f"{four_decimals(value.value)} nats a byte"
    if value.low is None or value.high is None:
        return f"is worth {number} in these runs; the seeds allow no interval."
    ends = interval(value.low, value.high)
    if value.low > 0:
        return f"is worth {number} ({ends})."
    if value.high < 0:
        return (
            f"costs {four_decimals(-value.value)} nats a byte (worth {ends}). {if_nothing}".strip()
        )
    return (
        f"is worth {number}, which cannot be told from 0 ({ends}). Longer runs, more seeds or "
        "another size may show it."
    )


def _signed(value: Estimate) -> str:
    direction = "better" if value.value < 0 else "worse"
    ends = interval(value.low, value.high)
    size = f"{four_decimals(abs(value.value))} nats a byte"
    return f"{size} ({ends}) {direction}" if ends else f"{size} {direction}"


def _beats(place: Place) -> bool:
    value = place.to_domain_token
    return bool(place.learned and value and value.high is not None and value.high < 0)
