"""`moebench conform`: anyone's balance loss, held to the definition."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moebench.cli.exit_codes import FAILED
from moebench.cli.options import AsJson
from moebench.cli.output import print_json, stdout_console

if TYPE_CHECKING:
    from moebench.conform import Conformance

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:FUNCTION",
        help="a function of (router_logits, top_k=, mask=), or a class of such objects; the module "
        "is a dotted name or a .py file",
    ),
]
ScopeOption = Annotated[
    Literal["global", "micro", "sequence"], typer.Option(help="whose f it claims to have")
]
Accumulation = Annotated[
    Literal["mean", "sum"], typer.Option(help="how the trainer combines the losses of passes")
]
Ranks = Annotated[
    Literal["mean", "sum"],
    typer.Option(help="how the trainer combines the gradients of ranks; DDP takes the mean"),
]


def conform(
    function: Target,
    scope: ScopeOption = "global",
    accumulation: Accumulation = "mean",
    ranks: Ranks = "mean",
    as_json: AsJson = False,
) -> None:
    """Try a balance loss of your own over passes, ranks, padding and recomputation.

    Its gradients are compared with the definition's. If they differ, the known bug is named that
    makes the same difference. The function's code is run.

    Example: `moebench conform loss.py:balance_loss --scope micro`
    """
    from moebench.conform import conformance

    found = conformance(function, scope, accumulation=accumulation, ranks=ranks)
    if as_json:
        print_json(
            {
                "function": function,
                "scope": scope,
                "conforms": found.conforms,
                "coefficient": found.coefficient,
                "scenarios": [vars(verdict) for verdict in found.verdicts],
            }
        )
    else:
        _print(found, f"{function} as a {scope} balance loss")
    if not found.conforms:
        raise typer.Exit(FAILED)


def _print(found: "Conformance", title: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for name in ("step", "", "error", "what deviates"):
        table.add_column(name)
    for verdict in found.verdicts:
        error = "-" if verdict.error != verdict.error else f"{verdict.error:.0e}"
        mark = "conforms" if verdict.conforms else "deviates"
        table.add_row(verdict.scenario, mark, error, Text(verdict.said))
    console = stdout_console()
    console.print(table)
    if found.coefficient == found.coefficient:
        console.print(
            f"coefficient of E f P, a mean over layers: {found.coefficient:.4g} "
            f"({found.convention()})"
        )
