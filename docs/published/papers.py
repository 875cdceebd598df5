"""Each finding of two papers beside what the studies say."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from docs.published.cells import (
    Said,
    Studies,
    count,
    distinct,
    ends,
    grid,
    link,
    nats,
    said,
    titles,
    without_constants,
)
from docs.published.study import PRESETS, Row, Study
from moebench.plans import PRIMARY
from moebench.report.infer.contrasts import Contrast, contrast
from moebench.report.infer.statistics import VERDICT_SEEDS
from moebench.report.paper.findings import BYTES, PAPER, findings, log_ratio
from moebench.report.paper.selectors import meets, options_as_keys
from moebench.report.paper.verdicts import (
    AGREES,
    CANNOT_TELL,
    CONTRADICTS,
    EXCLUDED,
    NOT_TESTED,
    TOO_EARLY,
    WITHIN,
)
from moebench.report.show.numbers import as_percent, four_decimals

TESTBED = "arXiv 2604.07030"
KNOWN = "01-global-below-micro"
FIRST = findings()[KNOWN]["claim"]
DECLARED = Path(__file__).with_name("testbed.yaml")
HEADERS = ("finding", "verdict", "here", "tokens", "seeds", "study")
TOLD = "What this study says of findings that its table of arms does not show:"
OF_THE_PAPER = """\
*Here* is the difference, slope or weakest step of these runs, with its interval at the level that
was tested. *Paper* is its size in nats a byte, at an assumed 4 bytes a token, where it gives
perplexities of two arms. It trained on 120 to 400 billion tokens. *Too early* means that these
runs are no better than a byte trigram of their text, or have not ended. A metric of load or routing
stands with its name ([what it is](metrics.md)). A row without a finding is of the one above. Arms
of a study of which it says the same share a row; its section has each with its interval."""
OF_THE_TESTBED = """\
Its abstract gives no figures, and its full text was not at hand. Each claim is read as
differences of arms. It agrees where the intervals of all lie above 0. It contradicts where one
lies below 0, at the level for all of them together. No study has these claims in its order of
findings: the verdicts rest on intervals alone, and hold for the claim as it is read here, at this
size. Whether a prescribed router bounds learned ones hangs on what it sees: `domain` sees the
domain alone, `domain_token` the token as well. Domain bits check that a treatment acts: to even the
loads of each domain drives them to 0 by itself."""


def paper(studies: Studies) -> list[str]:
    """Each finding of the paper beside what the studies say, and those that no study is about."""
    tests, rows, left = _tests(), [], []
    for finding, declared in findings().items():
        found = distinct(studies, claim=declared["claim"])
        claim, source = declared["claim"].removesuffix("."), declared["source"]
        cells = [_cells(studies[group[0].name], group) for group in alike(found)]
        about = [[claim, source, _size(declared)], *[["", "", ""]] * (len(cells) - 1)]
        rows += [[*first, *rest] for first, rest in zip(about, cells, strict=False)]
        if not found:
            study = f"`study={tests[finding]}`" if finding in tests else "no study has its arms"
            told = "a report describes it" if declared["type"] == "described" else "not run"
            left.append(f"- {claim}. {source}: {told}, {study}.")
    headers, rows, same = without_constants([HEADERS[0], "source", "paper", *HEADERS[1:]], rows)
    told = [" ".join([OF_THE_PAPER, same]).strip(), *filter(None, [shared(studies)])]
    parts = [grid(headers, rows), *["Not told by these studies:", "\n".join(left)] * bool(left)]
    return [f"## Findings of {PAPER}", *told, *filter(None, parts)]


def alike(found: Sequence[Said]) -> Iterable[list[Said]]:
    """What a study says of one finding, by verdict; what it tested first."""
    groups: dict[tuple[str, ...], list[Said]] = {}
    names = [each.name for each in found]
    for each in sorted(found, key=lambda of: (names.index(of.name), of.effect["p"] is None)):
        key = each.name, each.effect["part"], each.effect["metric"], said(each.effect)
        groups.setdefault(key, []).append(each)
    return groups.values()


def _cells(study: Study, group: Sequence[Said]) -> list[str]:
    """Verdict, effect, tokens, seeds and study of what shares a row."""
    effect = group[0].effect
    here = f"{ends(effect)} {_unit(effect)} at {as_percent(1 - effect['level'])}"
    if len(group) > 1:
        here = between(group, f" {_unit(effect)}")
    arm = named_arm(study, effect) * (len(group) == 1)
    where = ", ".join(filter(None, (link(group[0].title), effect["part"], arm)))
    seeds = str(len(effect["seeds"].split()))
    return [said(effect), here, count(effect["tokens"]), seeds, where]


def between(group: Sequence[Said], unit: str = "") -> str:
    """The range of the means of what a study says of several arms."""
    values = [each.effect["value"] for each in group]
    shown = " to ".join(map(four_decimals, (min(values), max(values))))
    return f"means of {len(group)} arms from {shown}{unit}"


def by_arm(study: Study) -> list[str]:
    """What a study says of findings of several arms, and what its rule says that is no row of arms.

    Without a rule it may test what the rule of another study left untested.
    """
    control = study.about.get("control")
    claims: dict[str, list[Row]] = {}
    for effect in study.found("finding"):
        claims.setdefault(effect["claim"].removesuffix("."), []).append(effect)
    rows = [
        [
            claim * (effect is effects[0]),
            *_sides(effect),
            f"{ends(effect)} {_unit(effect)}",
            said(effect if explained(effect) else {**effect, "text": ""}),
        ]
        for claim, effects in claims.items()
        for effect in effects
        if len(effects) > 1
        or ("look" in study.about and effect["metric"] == PRIMARY and effect["against"] != control)
    ]
    return [TOLD, grid(["finding", "arm", "less", "here", "verdict"], rows)] if rows else []


def explained(effect: Row) -> bool:
    """Whether a verdict needs its reason, as the sign of the effect is not what decides."""
    return effect["verdict"] == WITHIN or EXCLUDED in effect["text"]


def _sides(effect: Row) -> list[str]:
    """The two arms of a difference; a trend has none."""
    if effect["against"] == "trend":
        return ["", ""]
    return [f"`{effect[side]}`" for side in ("arm", "against")]


def shared(studies: Studies) -> str:
    """That studies share runs; "" where they do not."""
    keys = [(run["seed"], nats(run)) for name in titles(studies) for run in studies[name].runs]
    if len(keys) == len({*keys}):
        return ""
    return (
        f"Studies share seeds and runs: of the {len(keys)} runs in their tables, {len({*keys})} "
        "are distinct. Rows on the same text and seeds are no replications of one another. What "
        "several studies find in the same runs stands once, with the study that planned the test."
        f"{_ended_alike(studies)}"
    )


def _ended_alike(studies: Studies) -> str:
    """That a test ended several studies of a text; "" where none did."""
    ended: dict[str, list[str]] = {}
    for name, title in titles(studies).items():
        about = studies[name].about
        if "decided" in about.get("look", "") and about.get("order", "").startswith(KNOWN):
            ended.setdefault(about.get("data", ""), []).append(link(title))
    alike = [f"{', '.join(of[:-1])} and {of[-1]}" for of in ended.values() if len(of) > 1]
    if not alike:
        return ""
    return (
        f" One test, of global less micro, ended {'; another such test ended '.join(alike)}: all "
        "name it first. What they test after it had no say in the number of its seeds."
    )


def _unit(effect: Row) -> str:
    """Of nats; else the metric's name."""
    return effect["unit"] if effect["metric"] == PRIMARY else f"`{effect['metric']}`"


def _size(finding: Row) -> str:
    """The paper's difference of two arms in nats a byte; "" where it gives none."""
    if "perplexity" not in finding or "arm" not in finding:
        return ""
    return four_decimals(log_ratio(finding) / BYTES[0])


def named_arm(study: Study, effect: Row) -> str:
    """The arm, where a study says several things of one finding."""
    several = len(study.found("finding", claim=effect["claim"])) > 1
    return f"`{effect['arm']}`" if several else ""


def _tests() -> dict[str, str]:
    """Which study has the arms of a finding; `scope` where it is one of several."""
    presets = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    known: dict[str, str] = {}
    for name in dict.fromkeys(["scope", *presets]):
        for finding in yaml.safe_load(presets[name].read_text(encoding="utf-8")).get("order", ()):
            known.setdefault(finding, name)
    arms = {_arms(findings()[finding]): name for finding, name in reversed(known.items())}
    same = {name: arms[_arms(of)] for name, of in findings().items() if _arms(of) in arms}
    return same | known


def _arms(finding: Row) -> str:
    """What a finding compares."""
    return repr([finding.get(key) for key in ("arm", "against", "along", "highest_first")])


def testbed(studies: Studies) -> list[str]:
    """The same for arXiv 2604.07030."""
    rows, content = [], yaml.safe_load(DECLARED.read_text(encoding="utf-8"))
    for declared in content["findings"]:
        claim = declared["claim"].removesuffix(".")
        found = [
            [claim, *cells, link(title)]
            for name, title in titles(studies).items()
            if studies[name].about["study"] == declared["study"]
            for cells in _against_zero(studies[name], declared, content["arms"])
        ]
        rows += found or [[claim, "not run", "", "", "", f"`study={declared['study']}`"]]
    return [f"## Findings of {TESTBED}", OF_THE_TESTBED, grid(HEADERS, rows)]


def _against_zero(study: Study, declared: Row, arms: Row) -> Iterable[list[str]]:
    """Verdict, contrasts, tokens and seeds of a declared finding, for each part of a study.

    Args:
        arms: selectors, by the names that the finding gives them.
    """
    for part in study.parts:
        runs, made = study.runs_of(part), study.made(part)
        names = {name: _named(study.by_arm(part), selector) for name, selector in arms.items()}
        found = [
            weighed(runs, {names[arm]: of for arm, of in weights.items()}, declared.get("metric"))
            for weights in declared["above_zero"]
        ]
        contrasts = [each for each in found if each is not None]
        if len(contrasts) < len(found):
            continue
        seeds = min(each.seeds for each in contrasts)
        few = seeds < VERDICT_SEEDS and "look" not in study.about
        withheld = TOO_EARLY if "too early" in study.about else NOT_TESTED * few
        here = "; ".join(ends(vars(each.estimate(1 - made["level"]))) for each in contrasts)
        yield [
            withheld or _verdict(contrasts, made["level"]),
            f"{here} {_named_unit(declared)} at {as_percent(1 - made['level'])}",
            count(made["tokens"]),
            str(seeds),
        ]


def _named_unit(declared: Row) -> str:
    return f"`{declared['metric']}`" if "metric" in declared else "nats a byte"


def _named(by_arm: Mapping[str, Sequence[Row]], selector: Row) -> str:
    """The first arm that a selector means; "" without one."""
    sciences = {arm: options_as_keys(runs[0]["science"]) for arm, runs in by_arm.items()}
    return next((arm for arm, science in sciences.items() if meets(selector, science)), "")


def _verdict(contrasts: Sequence[Contrast], level: float) -> str:
    """What contrasts say that a paper has above 0: it is below if one is, at the level for all."""
    together = [of.estimate(1 - level / len(contrasts)).high for of in contrasts]
    if any(high is not None and high < 0 for high in together):
        return CONTRADICTS
    lows = [of.estimate(1 - level).low for of in contrasts]
    return AGREES if all(low is not None and low > 0 for low in lows) else CANNOT_TELL


def weighed(
    runs: Sequence[Row], weights: Mapping[str, float], metric: str | None = None
) -> Contrast | None:
    """A contrast of arms, by their weights; None where one of them lacks.

    Args:
        metric: a name; None stands for nats a byte.
    """
    by_arm: dict[str, dict[int, float]] = {}
    for run in runs:
        value = nats(run) if metric is None else run["metrics"].get(metric, math.nan)
        by_arm.setdefault(run["arm"], {})[run["seed"]] = value
    if not {*weights} <= {*by_arm}:
        return None
    seeds = sorted({seed for of in by_arm.values() for seed in of})
    values = np.array([[by_arm[arm].get(seed, math.nan) for arm in weights] for seed in seeds])
    found = contrast(values, np.array([*weights.values()], float))
    return found if found.seeds else None
