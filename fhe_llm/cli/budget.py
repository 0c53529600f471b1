"""``fhe-llm budget``: what left for whom, what it cost, and what may still leave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fhe_llm.cli.reporting import echo_json, reported
from fhe_llm.errors import LedgerError, RequestError

if TYPE_CHECKING:
    from fhe_llm.privacy.ledger import Balance, Budget, Entry, Ledger

app = typer.Typer(
    help="Privacy budgets and quotas of work: show, set, history, export, report.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Where = Annotated[
    str | None,
    typer.Option("--ledger", help="File or redis:// URL (default: $FHE_LLM_LEDGER, else your data folder)."),
]
Principal = Annotated[str | None, typer.Argument(help="Whose; everybody's if left out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("show")
@reported
def show(principal: Principal = None, where: Where = None, as_json: AsJson = False) -> None:
    """What is spent and left, one line for each unit and window."""
    with _opened(where) as ledger:
        found = {name: ledger.balances(name) for name in _principals(ledger, principal)}
    if as_json:
        echo_json({name: [_balance(balance) for balance in balances] for name, balances in found.items()})
        return
    if not any(found.values()):
        typer.echo("Nothing was spent and no budget is set. See `fhe-llm budget set --help`.")
    for name, balances in found.items():
        typer.echo(name)
        for balance in balances:
            typer.echo(f"  {_line(balance)}")


@app.command("set")
@reported
def set_budget(
    principal: Annotated[str, typer.Argument(help="Whose budget.")],
    unit: Annotated[
        str, typer.Argument(help="epsilon, group-epsilon, metric-epsilon, rho, queries, rounds, bytes, ...")
    ],
    value: Annotated[float, typer.Argument(help="How much of it.")],
    per: Annotated[str, typer.Option(help="hour, day, week, 30days or lifetime.")] = "lifetime",
    delta: Annotated[float | None, typer.Option(help="With rho: VALUE is an epsilon at this delta.")] = None,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Set one budget. What was spent stays spent."""
    from fhe_llm.privacy.charge import zcdp_budget
    from fhe_llm.privacy.ledger import Budget

    if delta is not None:
        if unit != "rho":
            raise RequestError(
                f"cannot use --delta with {unit}: only rho stands for an epsilon at a delta. Drop it."
            )
        value = zcdp_budget(value, delta)
    budget = Budget.of(value, unit, per)  # type: ignore[arg-type]  # it checks both names
    with _opened(where, create=True) as ledger:
        ledger.set_budget(principal, budget)
    if as_json:
        echo_json({"principal": principal, **_budget(budget)})
    else:
        typer.echo(f"{principal}: {budget}")


@app.command("history")
@reported
def history(
    principal: Principal = None,
    last: Annotated[int, typer.Option(min=1, help="Only the newest so many.")] = 50,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """What happened, oldest first."""
    with _opened(where) as ledger:
        entries = list(ledger.history(principal, newest=last))
    if as_json:
        echo_json({"entries": [_entry(entry) for entry in entries]})
        return
    for entry in entries:
        typer.echo(_entry_line(entry))


@app.command("export")
@reported
def export(
    principal: Principal = None,
    where: Where = None,
    as_json: Annotated[bool, typer.Option("--json", help="The format; there is no other.")] = True,  # noqa: ARG001
) -> None:
    """Everything the ledger holds, as one JSON object: budgets, balances and the whole history."""
    with _opened(where) as ledger:
        names = _principals(ledger, principal)
        exported = {
            "principals": {
                name: {
                    "budgets": [_budget(budget) for budget in ledger.budgets(name)],
                    "balances": [_balance(balance) for balance in ledger.balances(name)],
                }
                for name in names
            },
            "entries": [_entry(entry) for entry in ledger.history(principal)],
        }
    echo_json(exported)


@app.command("report")
@reported
def report(
    principal: Principal = None,
    html: Annotated[bool, typer.Option("--html", help="Write one self-contained page instead.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Where the page goes (default: budget-report.html).", show_default=False),
    ] = None,
    delta: Annotated[float, typer.Option(help="The delta at which a rho is also told as an epsilon.")] = 1e-6,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Spent and left over time, whole exposure, forecast: as text, as JSON or as a page."""
    from fhe_llm.privacy.reporting import html_page, report_on, text_report, write_page

    if output is not None and not html:
        raise RequestError("cannot use --output alone: only a page is written to a file. Add --html.")
    with _opened(where) as ledger:
        found = report_on(ledger, principal, delta=delta)
    if html:
        path = output or Path("budget-report.html")
        size = write_page(html_page(found), path)
        if as_json:
            echo_json({"path": str(path), "bytes": size})
        else:
            typer.echo(f"wrote {path}")
    elif as_json:
        echo_json(found.to_dict())
    else:
        typer.echo(text_report(found))


@contextmanager
def _opened(where: str | None, *, create: bool = False) -> Iterator[Ledger]:
    """The ledger; reading one that does not exist is an error, not an empty answer."""
    from fhe_llm.privacy.account import default_ledger
    from fhe_llm.privacy.ledger_place import open_ledger

    place = where or default_ledger()
    if not create and "://" not in place and not Path(place).expanduser().exists():
        raise LedgerError(
            f"cannot read a ledger at {place}: there is none. Name one with --ledger, or set a budget."
        )
    with open_ledger(place) as ledger:
        yield ledger


def _principals(ledger: Ledger, principal: str | None) -> tuple[str, ...]:
    return ledger.principals() if principal is None else (principal,)


def _budget(budget: Budget) -> dict[str, Any]:
    from fhe_llm.privacy.charge import UNIT_INFO

    return {
        "unit": budget.unit,
        "window": budget.window,
        "limit": budget.limit,
        "amounts_per_unit": UNIT_INFO[budget.unit].scale,
    }


def _balance(balance: Balance) -> dict[str, Any]:
    from fhe_llm.privacy.charge import UNIT_INFO

    return {
        "unit": balance.unit,
        "window": balance.window,
        "spent": balance.spent,
        "pending": balance.pending,
        "limit": balance.budget.limit if balance.budget else None,
        "left": balance.left,
        "refreshes_at": balance.refreshes_at,
        "amounts_per_unit": UNIT_INFO[balance.unit].scale,
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "sequence": entry.sequence,
        "time": entry.time,
        "principal": entry.principal,
        "kind": entry.kind,
        "action": entry.action,
        "key": entry.key,
        "change": dict(entry.change),
        "event": entry.event.to_dict() if entry.event else None,
        "budget": _budget(entry.budget) if entry.budget else None,
    }


def _line(balance: Balance) -> str:
    from fhe_llm.privacy.charge import shown

    spent = f"{balance.kind:<10} {shown(balance.spent, balance.unit)} spent"
    pending = f", {shown(balance.pending, balance.unit)} of it pending" if balance.pending else ""
    if balance.budget is None:
        return f"{spent} in all{pending}; no budget over that time"
    refresh = f"; refreshes {_time(balance.refreshes_at)}" if balance.refreshes_at else ""
    return f"{spent} of {balance.budget}{pending}, {shown(balance.left or 0, balance.unit)} left{refresh}"


def _entry_line(entry: Entry) -> str:
    from fhe_llm.privacy.charge import shown
    from fhe_llm.privacy.reporting.words import happened

    changes = ", ".join(
        f"{'+' if amount >= 0 else '-'}{shown(abs(amount), unit)}" for unit, amount in entry.change.items()
    )
    return f"{_time(entry.time)}  {entry.principal}  {entry.action}  {changes or '0'}  {happened(entry)}"


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
