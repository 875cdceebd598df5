"""`moebench data`: prepare, show or check the text that runs train on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moebench.cli.options import AsJson, ConfigDir, Overrides, parse_number
from moebench.cli.output import print_json, stdout_console

if TYPE_CHECKING:
    from moebench.data.corpus import Corpus

app = typer.Typer(help="Prepare, show or check the text that runs train on.")

Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", parser=parse_number, metavar="N", help="processes; by default one per core"
    ),
]

COLUMNS = ("docs", "MB", "Mtokens", "valid docs", "kB", "overlap")


@app.command()
def prepare(
    overrides: Overrides = None,
    jobs: Jobs = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Prepare the data, and print its hash and its directory.

    Example: `moebench data prepare data=folder data.path=texts`
    """
    corpus = _prepare(overrides, config_dir, jobs)
    if as_json:
        print_json(_location(corpus))
    else:
        print(*_location(corpus).values())


@app.command()
def check(
    overrides: Overrides = None, as_json: AsJson = False, config_dir: ConfigDir = None
) -> None:
    """Check prepared data against its checksums; damaged data is deleted.

    Example: `moebench data check data=folder data.path=texts`
    """
    corpus = _prepare(overrides, config_dir)
    corpus.check()
    if as_json:
        print_json({**_location(corpus), "damage": []})
    else:
        print(f"{corpus.directory}: complete and unchanged")


@app.command()
def show(
    overrides: Overrides = None, as_json: AsJson = False, config_dir: ConfigDir = None
) -> None:
    """Show the domains of the data: number of documents, sizes and a sample of each.

    Example: `moebench data show data=folder data.path=texts`
    """
    corpus = _prepare(overrides, config_dir)
    domains = corpus.describe()
    if as_json:
        about = {"content_hash": corpus.content_hash, "trigram_bits": corpus.trigram_bits}
        print_json({**about, "domains": domains})
    else:
        stdout_console().print(_table(corpus.content_hash, domains))
        print(f"a byte trigram of the training text: {corpus.trigram_bits:.3f} bits a byte")


def _prepare(
    overrides: list[str] | None, config_dir: Path | None, processes: int | None = None
) -> "Corpus":
    from moebench.cli.progress import DataDisplay
    from moebench.config.compose import Composer
    from moebench.data.corpus import prepare

    data = Composer(config_dir).compose(overrides or []).data
    with DataDisplay() as display:
        return prepare(data, progress=display.print, bar=display.bar, processes=processes)


def _location(corpus: "Corpus") -> dict[str, str]:
    return {"content_hash": corpus.content_hash, "directory": str(corpus.directory)}


def _table(content_hash: str, domains: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from moebench.records import printable

    title = f"data {content_hash[:10]}"
    table = Table(title=title, title_justify="left", expand=True)
    table.add_column("domain")
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("sample", no_wrap=True, ratio=1)
    for row in domains:
        cells = (
            *(row["domain"], row["train_documents"], row["train_mb"], row["train_tokens"] / 1e6),
            *(row["valid_documents"], row["valid_kb"], f"{row['overlap']:.1%}", row["sample"]),
        )
        words = [f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
        table.add_row(*(Text(printable(word)) for word in words))
    return table
