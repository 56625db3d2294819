"""What `darkroom top` shows: one screen of a server's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from darkroom.cli.scrape import History, spark

STAGES = {  # and the colour of each one's bar
    "queue": "yellow",
    "text": "blue",
    "references": "magenta",
    "denoise": "cyan",
    "decode": "green",
    "encode": "white",
}
WIDE = 100  # columns from which two panels stand side by side
TALL = 44  # lines that panels below each other may take; a lower terminal has them side by side where that is possible
LEAST_BESIDE = 76  # columns for that
FRAME = 4  # columns of a panel that are not its contents
GAUGE = 48  # columns of a gauge without its course
NARROW = 52  # columns of contents below which panels leave out courses, small bars and what is said elsewhere
COURSE = (4, 32)  # columns of a course, least and most
BAR = 26  # columns of a stage without its bar
SMALL_BAR = 8
EIGHTHS = " ▏▎▍▌▋▊▉█"
DIM, GOOD, WARN, BAD = "dim", "green", "yellow", "bold red"
ROUTES = 6
Row = Sequence[RenderableType]


def screen(
    history: History, facts: dict[str, str], *, trouble: str = "", width: int = 100, height: int = TALL
) -> RenderableType:
    """Everything. facts: of the head, in order. trouble: why the numbers are old. width, height: of the terminal."""
    beside = width >= WIDE or (height < TALL and width >= LEAST_BESIDE)
    inside = (width // 2 if beside else width) - FRAME
    course = 0 if inside < NARROW else min(max(inside - GAUGE, COURSE[0]), COURSE[1])
    left = (work(history, course), engine(history, course), stages(history, inside - BAR))
    right = (caches(history, course), deliveries(history, course), requests(history, course))
    if not beside:
        return Group(head(history, facts, trouble), *left, *right)
    body = Table.grid(expand=True)
    body.add_column(ratio=1)
    body.add_column(ratio=1)
    body.add_row(Group(*left), Group(*right))
    return Group(head(history, facts, trouble), body)


def head(history: History, facts: dict[str, str], trouble: str) -> Text:
    line = Text("darkroom ", style="bold", no_wrap=True, overflow="ellipsis")
    if trouble:
        line.append(f"✗ {trouble} ", style=BAD)
    elif history.now.total("darkroom_engine_ready"):
        line.append("● ready ", style=GOOD)
    else:
        line.append("○ the engine starts ", style=WARN)
    return line.append(" · ".join(fact for fact in facts.values() if fact), style=DIM)


def work(history: History, course: int) -> Panel:
    """course: columns of the small bars that show how a number went; 0 where there is no room for them."""
    now, results = history.now, "darkroom_results_total"
    made = now.total(results, outcome="made")
    failed = now.total(results) - made
    queued = now.total("darkroom_tasks", status="queued")
    oldest = f"oldest {seconds(now.total('darkroom_queue_oldest_seconds'))}" if queued else "nobody waits"
    return gauges(
        "Work",
        (
            "pictures",
            per_second(history.rate(results, outcome="made")),
            spark(history.rates(results, outcome="made"), course),
            Text.assemble(
                f"{made:,.0f} made", (f", {failed:,.0f} failed" if failed or course else "", WARN if failed else DIM)
            ),
        ),
        ("queue", f"{queued:,.0f}", spark(history.levels("darkroom_tasks", status="queued"), course), oldest),
        (
            "running",
            f"{now.total('darkroom_tasks', status='processing'):,.0f}",
            spark(history.levels("darkroom_tasks", status="processing"), course),
            "tasks",
        ),
        ("wait", *spread(history, "darkroom_stage_seconds", course, stage="queue")),
        ("task", *spread(history, "darkroom_task_seconds", course)),
    )


def engine(history: History, course: int) -> Panel:
    now, rows = history.now, "darkroom_engine_batch_rows"
    batch = history.mean(rows)
    reused, computed = (history.grown("darkroom_steps_total", kind=kind) for kind in ("reused", "computed"))
    return gauges(
        "Engine",
        (
            "steps",
            per_second(history.rate(f"{rows}_sum")),
            spark(history.rates(f"{rows}_sum"), course),
            f"{share(reused, reused + computed)} reused" if reused else "of single images",
        ),
        ("step time", *spread(history, "darkroom_engine_step_seconds", course)),
        (
            "batch",
            "–" if batch is None else f"{batch:.1f}",
            spark(history.levels("darkroom_engine_rows"), course),
            f"{now.total('darkroom_engine_rows'):.0f} {'images ' if course else ''}in flight",
        ),
        (
            "memory",
            size(now.total("darkroom_engine_memory_bytes")),
            "",
            f"server {size(now.total('process_resident_memory_bytes'))}",
        ),
        *models(history),
    )


def models(history: History) -> Iterable[Row]:
    """Those in memory, with the devices they are on."""
    name = "darkroom_engine_model_bytes"
    for card, held in history.now.by(name, "card").items():
        places = {
            f"{labels['device']} {labels['dtype']}"
            for labels in map(dict, history.now.samples[name])
            if labels["card"] == card
        }
        yield "model", size(held), "", f"{card} {', '.join(sorted(places))}"


def stages(history: History, width: int) -> Panel:
    """The mean time of each stage of the pictures of the last minute."""
    means = {stage: history.mean("darkroom_stage_seconds", stage=stage) or 0.0 for stage in STAGES}
    whole = sum(means.values())
    rows = [
        (stage, seconds(mean) if mean else "–", share(mean, whole), Text(bar(mean, whole, width), style=STAGES[stage]))
        for stage, mean in means.items()
    ]
    return panel("Where a picture's time goes", columns(rows, "<>><"))


def caches(history: History, course: int) -> Panel:
    rows: list[Row] = [titles("", "found", "", "asked", "holds")]
    counted = history.now.labels("darkroom_cache_entries", "cache")
    for cache in history.now.labels("darkroom_cache_hits_total", "cache"):
        hits, misses = (history.now.total(f"darkroom_cache_{what}_total", cache=cache) for what in ("hits", "misses"))
        held, entries = (history.now.total(f"darkroom_cache_{unit}", cache=cache) for unit in ("bytes", "entries"))
        rows.append(
            (
                cache.removesuffix("_cache").replace("_", " "),
                share(hits, hits + misses),
                Text(bar(hits, hits + misses, SMALL_BAR if course else 0), style=GOOD),
                f"{hits + misses:,.0f}",
                f"{entries:,.0f}" if cache in counted else size(held),
            )
        )
    return panel("Caches", columns(rows, "<><>>"))


def deliveries(history: History, course: int) -> Panel:
    outcomes = {"delivered": GOOD, "retried": WARN, "failed": BAD}
    rows: list[Row] = [titles("", "owed", "sent", "retried", "failed", *(["p95"] if course else []))]
    for kind in history.now.labels("darkroom_deliveries_pending", "kind"):
        p95 = history.quantile("darkroom_delivery_seconds", 0.95, kind=kind)
        counts = {
            outcome: history.now.total("darkroom_delivery_attempts_total", kind=kind, outcome=outcome)
            for outcome in outcomes
        }
        rows.append(
            (
                f"{kind}s",
                f"{history.now.total('darkroom_deliveries_pending', kind=kind):,.0f}",
                *(Text(f"{count:,.0f}", style=outcomes[name] if count else DIM) for name, count in counts.items()),
                *([seconds(p95) if p95 is not None else "–"] if course else []),
            )
        )
    return panel("Webhooks and uploads", columns(rows, "<>>>>>"[: 6 if course else 5], least=8 if course else 4))


def requests(history: History, course: int) -> Panel:
    """The routes asked most in the last minute, whatever was refused, and the sockets."""
    name = "darkroom_http_requests_total"
    grown = {route: history.grown(name, route=route) for route in history.now.labels(name, "route")}
    busiest = sorted(((count, route) for route, count in grown.items() if count), reverse=True)[:ROUTES]
    rows: list[Row] = [titles("", "asked", "", "p95", "refused")]
    for _, route in busiest:
        p95 = history.quantile("darkroom_http_request_seconds", 0.95, route=route)
        refused = refusals(history, route=route)
        rows.append(
            (
                route,
                per_second(history.rate(name, route=route)),
                spark(history.rates(name, route=route), course),
                seconds(p95) if p95 is not None else "–",
                Text(f"{refused:,.0f}", style=WARN if refused else DIM),
            )
        )
    rows.append(("sockets", f"{history.now.total('darkroom_open_sockets'):,.0f}", "", "", ""))
    return panel("Requests", columns(rows, "<><>>"))


def refusals(history: History, **labels: str) -> float:
    """Answers of the last minute with a status of 400 and above."""
    name = "darkroom_http_requests_total"
    codes = [code for code in history.now.labels(name, "status") if code >= "400"]
    return sum(history.grown(name, status=code, **labels) for code in codes)


# Parts


def gauges(title: str, *rows: Row) -> Panel:
    """Rows of a name, a value, its course and a remark."""
    return panel(title, columns(rows, "<><<"))


def panel(title: str, table: Table) -> Panel:
    return Panel(table, title=title, title_align="left", box=box.ROUNDED, border_style=DIM, padding=(0, 1))


def columns(rows: Iterable[Row], alignment: str, least: int = 8) -> Table:
    """A column for each sign of alignment (< left, > right); the first is a name, the second what matters.

    least: columns of the second.
    """
    table = Table.grid(padding=(0, 1))
    for place, sign in enumerate(alignment):
        table.add_column(
            justify="right" if sign == ">" else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=(10, least)[place] if place < 2 else None,
            style=(DIM, "bold", "cyan")[place] if place < 3 else "",
        )
    for row in rows:
        table.add_row(*row)
    return table


def titles(*names: str) -> Row:
    return [Text(name, style="dim italic") for name in names]


def spread(history: History, name: str, course: int, **labels: str) -> tuple[str, str, str]:
    """Median, nothing, 95th percentile of a histogram in the last minute."""
    middle, high = (history.quantile(name, part, **labels) for part in (0.5, 0.95))
    if middle is None or high is None:
        return "–", "", "none lately"
    return seconds(middle), "", f"{'median, ' if course else ''}p95 {seconds(high)}"


def bar(value: float, whole: float, width: int) -> str:
    """A bar of up to so many characters, to an eighth of one."""
    eighths = round(8 * width * value / whole) if whole else 0
    return (EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8]).strip()


def share(value: float, whole: float) -> str:
    return f"{100 * value / whole:.0f} %" if whole else "–"


def per_second(rate: float) -> str:
    return f"{rate:.1f}/s" if rate < 100 else f"{rate:,.0f}/s"


def seconds(value: float) -> str:
    """ "2.2 ms", "22 ms", "1.3 s", "2 min 5 s", "3 h 12 min"."""
    if value < 0.9995:
        return f"{value * 1000:.0f} ms" if value >= 0.00995 else f"{value * 1000:.1f} ms"
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{value // 60:.0f} min {value % 60:.0f} s"
    return f"{value // 3600:.0f} h {value % 3600 // 60:.0f} min"


def size(count: float) -> str:
    """Bytes, in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
