"""Metrics of quality: is the model learning?"""

from collections.abc import Iterator
from functools import partial

from moebench.catalogue.metric import Column, Metric, Scalars

_of_domains = partial(Metric, window="validation set", direction="lower", per="domain")

_QUALITY = (
    _of_domains(
        "valid/nats",
        "cross-entropy per token on the test half of the validation documents; the mean over "
        "domains, each weighted equally",
        unit="nats",
        scalars="whole",
        chart="Validation loss, nats per token, all domains",
        printed=True,
        column=Column("perplexity", "nats a\ntoken", 4),
    ),
    _of_domains(
        "valid/ppl",
        "perplexity, exp(`valid/nats`); its standard error is `valid/ppl` times that of the nats",
        chart="Validation perplexity, all domains",
        part_chart="Validation perplexity: {part}",
        hparam=True,
        printed=True,
        inspected="perplexity of validation text",
        column=Column("perplexity", "PPL", 3),
    ),
    _of_domains(
        "valid/bits_per_byte",
        "cross-entropy per byte of text, comparable across tokenizers",
        unit="bits",
        scalars="whole",
        printed=True,
        inspected="the same in bits a byte of text",
        column=Column("perplexity", "bits a\nbyte", 4),
    ),
    _of_domains(
        "valid/nats_se",
        "standard error of `valid/nats` over documents: how far other documents of the same kind "
        "would move it. Arms see the same documents, so it is not the error of their difference",
        unit="nats",
        scalars="none",
    ),
    _of_domains(
        "valid/bits_per_byte_se",
        "standard error of `valid/bits_per_byte` over documents",
        unit="bits",
        scalars="none",
    ),
)


def _on(text: str, split: str, needs: str, scalars: Scalars) -> Iterator[Metric]:
    """The metrics of quality on other text, which only records show."""
    for metric in _QUALITY:
        yield Metric(
            metric.name.replace("valid", split),
            f"`{metric.name}` on {text}",
            unit=metric.unit,
            window=metric.window,
            direction=metric.direction,
            per=metric.per,
            needs=needs,
            scalars=scalars,
        )


LEARNING = (
    Metric(
        "train/loss",
        "cross-entropy per token; no balance term enters",
        unit="nats",
        direction="lower",
        chart="Training loss, nats per token",
    ),
    *_QUALITY,
    Metric(
        "assigned/nats",
        "cross-entropy per token with experts assigned as in training. An assignment may see "
        "later tokens, so compare it with nothing else",
        unit="nats",
        window="validation set",
        needs="a method that assigns experts",
    ),
    Metric(
        "own/nats",
        "cross-entropy per token with the experts that the run's own router selects, where "
        "`valid/nats` is with those of another run",
        unit="nats",
        window="validation set",
        needs="`router=replay`",
    ),
    *_on("the other half of the validation documents, at the last step", "tune", "", "none"),
    *_on("domains that are not trained on", "heldout", "`data.heldout`", "all"),
)
