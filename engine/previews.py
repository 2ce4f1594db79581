"""A template pack side by side: what is in a sample record, the rule, and what comes of it.

Samples are files of the form `{venue, samples: [{name, push or pull, record, …}]}`: `push` and `pull` name a
resource, and `record` is of the side that it starts from. `entity` tells mappings of one resource apart;
without it the first one is meant. `links` are `resource id: other id`, `venue` is what is different about the
venue, and `lengths` gives texts of so many characters. What else is in it is for tests. Numbers with a
fraction are exact, as the platform gives them.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path as FilePath
from typing import Any, Literal

from engine.documents import Document, Steps
from engine.explaining import Explained, Explanation, Way, explain, made_up_links
from engine.expressions import ABSENT
from engine.layering import Origin
from engine.manifest import Connector, Platform
from engine.mapping import MappingScope
from engine.ports import Record
from engine.templates import MappingTemplate

Style = Literal["text", "markdown", "html"]

SAMPLE_VENUE: Record = {
    "id": "venue", "name": "Sample venue", "currency": "USD", "timezone": "UTC",
}  # fmt: skip
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LONGEST = 60  # characters of a value or a rule that a table shows


class SampleError(ValueError):
    """A file of samples isn't one; says what is wrong with it, and in which sample."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A record to be mapped. `links` are as a mapping's scope has them; without them they are made up."""

    name: str
    way: Way
    resource: str
    record: Record
    entity: str | None = None
    links: Mapping[tuple[str, str], str] | None = None
    venue: Record = field(default_factory=lambda: SAMPLE_VENUE)


@dataclass(frozen=True, slots=True)
class Preview:
    """What one mapping of a template makes of one sample."""

    sample: str
    record: Record
    explanation: Explanation


def sample_files(template: FilePath, names: Sequence[str]) -> list[FilePath]:
    """Return the files of samples of a template and of those it extends, the template's own first.

    They lie beside the template, or in `tests/snapshot/templates/<connector>/` of its project.
    """
    connector, project = template.parent, template.parent.parent.parent
    homes = (connector, connector / "samples", project / "tests/snapshot/templates" / connector.name)
    found = []
    for name in reversed(names):
        found += [
            file for home in homes if (file := home / f"{name}.samples.yaml").is_file()
        ][:1]  # fmt: skip
    return found


def read_samples(document: Document, venue: Mapping[str, Any] | None = None) -> list[Sample]:
    """Read a file of samples; `venue` takes the place of its own. Raises SampleError."""
    data = document.data
    if not isinstance(data, dict) or not isinstance(data.get("samples"), list):
        raise SampleError(f"{document.file} has no list of `samples`")
    around = {**SAMPLE_VENUE, **(venue if venue is not None else data.get("venue") or {})}
    return [_sample(document.file, number, each, around) for number, each in enumerate(data["samples"], 1)]


def _sample(file: str, number: int, written: Any, venue: Mapping[str, Any]) -> Sample:
    where = f"sample {number} of {file}"
    if not isinstance(written, dict) or ("push" in written) == ("pull" in written):
        raise SampleError(f"{where} needs `push` or `pull`, which names a resource")
    way: Way = "push" if "push" in written else "pull"
    if not isinstance(written.get("record"), dict):
        raise SampleError(f"{where} needs a `record`")
    links = {}
    for key, other in (written.get("links") or {}).items():
        resource, space, record_id = key.partition(" ")
        if not space:
            raise SampleError(f"{where} has the link `{key}`: it takes `resource id`")
        links[resource, record_id] = str(other)
    long = {
        name: (_LETTERS * (length // len(_LETTERS) + 1))[:length]
        for name, length in (written.get("lengths") or {}).items()
    }
    return Sample(
        name=str(written.get("name", where)),
        way=way,
        resource=str(written[way]),
        record={**exact(written["record"]), **long},
        entity=written.get("entity"),
        links=links,
        venue={**venue, **(written.get("venue") or {})},
    )


def exact(value: Any) -> Any:
    """Return a value with its numbers with a fraction as exact ones."""
    if isinstance(value, dict):
        return {key: exact(each) for key, each in value.items()}
    if isinstance(value, list):
        return [exact(each) for each in value]
    return Decimal(repr(value)) if isinstance(value, float) else value


def previews(
    template: MappingTemplate, connector: Connector, platform: Platform, samples: Sequence[Sample]
) -> Iterator[Preview]:
    """Explain every sample by the mapping it is for, in the order of the template's mappings."""
    for number, (mapping, written) in enumerate(zip(template.mappings, template.written, strict=True)):
        for sample in samples:
            goes = mapping.pushes if sample.way == "push" else mapping.pulls
            if not goes or _position(template, sample) != number:
                continue
            links = sample.links
            if links is None:
                links = made_up_links(mapping, sample.record, sample.way)
            explanation = explain(
                written,
                connector.resources[mapping.resource],
                platform.entities[mapping.entity],
                sample.record,
                MappingScope(venue=sample.venue, links=links),
                sample.way,
                origins_of(template, number),
            )
            yield Preview(sample.name, sample.record, explanation)


def _position(template: MappingTemplate, sample: Sample) -> int | None:
    return next(
        (
            number
            for number, each in enumerate(template.mappings)
            if each.resource == sample.resource and sample.entity in (None, each.entity)
        ),
        None,
    )


def origins_of(template: MappingTemplate, number: int) -> Callable[[str, int], Origin | None]:
    """Return what tells where the rules of one of a template's mappings were written."""

    def origin(field_name: str, _: int) -> Origin | None:
        steps: Steps = ("mappings", number, "fields", field_name)
        return template.origins.get(steps)

    return origin


# ---- as people read it ---------------------------------------------------------------------------------

_MARKS: Mapping[str, str] = {
    "made": "", "default": "default", "absent": "–", "not wanted": "not wanted",
    "passed over": "passed over", "failed": "error",
}  # fmt: skip
_ARROWS: Mapping[Way, str] = {"push": "→", "pull": "←"}


def render(title: str, shown: Sequence[Preview], style: Style = "text") -> str:
    """Write previews out: a table for each, from the source record by the rule to what is made of it."""
    return _STYLES[style](title, shown)


def render_explained(preview: Preview) -> str:
    """Write one out in words, with the fields each rule reads, and the file and line it is written in."""
    lines = [_heading(preview), ""]
    for each in _all(preview.explanation.rules):
        lines += [f"{each.target}", f"    from    {each.source} = {value_text(each.before)}"]
        lines += [f"    rule    {rule_text(each)}  ({_where(each)})"] if each.origin else [
            f"    rule    {rule_text(each)}"
        ]  # fmt: skip
        lines += [f"    reads   {', '.join(each.reads)}"] if each.reads not in ((), (each.source,)) else []
        lines += [f"    {'error   ' if each.outcome == 'failed' else 'result  '}{_result(each)}"]
    return "\n".join([*lines, "", *_ending(preview.explanation)])


def value_text(value: Any, longest: int = _LONGEST) -> str:
    """Write a value as a table shows it: JSON, cut when it is long; nothing where there is none."""
    if value is ABSENT:
        return "–"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def rule_text(rule: Explained) -> str:
    """Write a rule in a line: its kind, and what it does it by."""
    options = rule.rule if isinstance(rule.rule, Mapping) else {}
    said = {
        "copied": "copied",
        "values": "table: "
        + ", ".join(f"{ours} = {theirs}" for ours, theirs in options.get("values", {}).items()),
        "link": f"id of the linked {options.get('link')}",
        "list": "each item" + (f" of {rule.expression}" if rule.expression else ""),
    }.get(rule.kind, rule.expression or "")
    given = [f"{key} {value_text(options[key])}" for key in ("default", "pull_default") if key in options] + (
        ["required"] if options.get("required") else []
    )
    return "; ".join([said, *given])


def _where(rule: Explained) -> str:
    return "" if rule.origin is None else f"{rule.origin.layer}, {rule.origin}"


def _result(rule: Explained) -> str:
    mark = _MARKS[rule.outcome]
    value = "" if rule.outcome in ("absent", "not wanted", "failed") else value_text(rule.after)
    why = f"({rule.why})" if rule.why and value else rule.why
    return " ".join(each for each in (value, mark and f"[{mark}]", why) if each)


def _all(rules: Sequence[Explained]) -> Iterator[Explained]:
    for each in rules:
        yield each
        yield from _all(each.items)


def _heading(preview: Preview) -> str:
    told = preview.explanation
    return f"{told.entity} {_ARROWS[told.direction]} {told.resource}: {preview.sample}"


def _ending(told: Explanation) -> list[str]:
    lines = []
    if told.error is not None:
        lines.append(f"error: {told.error}")
    if told.condition_error is not None:
        lines.append(f"error: {told.condition_error}")
    elif not told.wanted:
        lines.append(f"left out: this doesn't hold: {told.condition}")
    if told.missing:
        lines.append(f"no rule gives what a new record needs: {', '.join(told.missing)}")
    return lines


def _rows(preview: Preview) -> Iterator[tuple[str, str, str, str, str]]:
    for each in _all(preview.explanation.rules):
        layer = each.origin.layer if each.origin else ""
        line = f"{layer}:{each.origin.line}" if each.origin else ""
        source = f"{each.source.partition('.')[2]} = {value_text(each.before)}"
        yield source, rule_text(each), line, each.target.partition(".")[2], _result(each)


_HEADINGS = ("Source", "Rule", "Written in", "Target", "Result")


def _text(title: str, shown: Sequence[Preview]) -> str:
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    out = StringIO()
    console = Console(file=out, width=160, no_color=True, highlight=False, markup=False, emoji=False)
    console.print(title)
    for preview in shown:
        console.print()
        table = Table(*_HEADINGS, title=_heading(preview), title_justify="left")
        for row in _rows(preview):
            table.add_row(*row)
        console.print(table)
        for line in _ending(preview.explanation):
            console.print(line)
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n")).rstrip()


def _markdown(title: str, shown: Sequence[Preview]) -> str:
    lines = [f"# {_plain(title)}", ""]
    for preview in shown:
        lines += [f"## {_plain(_heading(preview))}", "", f"| {' | '.join(_HEADINGS)} |", "|---" * 5 + "|"]
        lines += [f"| {' | '.join(_cell(each) for each in row)} |" for row in _rows(preview)]
        lines += ["", *(f"{_plain(each)}\n" for each in _ending(preview.explanation))]
    return "\n".join(lines).rstrip()


def _plain(text: str) -> str:
    """Keep Markdown from reading anything into a text."""
    return "".join(f"\\{each}" if each in "\\`*_[]<>#|" else each for each in text).replace("\n", " ")


def _cell(text: str) -> str:
    if not text:
        return ""
    fence = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|").replace("\n", " ")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem;
color: #1c1c1c; }}
table {{ border-collapse: collapse; width: 100%; margin: 0 0 1rem; }}
caption {{ text-align: left; font-weight: 600; margin: 1.5rem 0 .5rem; }}
th, td {{ text-align: left; vertical-align: top; border-bottom: 1px solid #d0d0d0; padding: .35rem .6rem; }}
td {{ font-family: ui-monospace, monospace; font-size: 13px; overflow-wrap: anywhere; }}
tr.failed td {{ background: #fde8e8; }}
tr.absent td, tr.not-wanted td, tr.passed-over td {{ color: #5c5c5c; }}
</style></head><body>
<h1>{title}</h1>
{tables}
</body></html>"""


def _html(title: str, shown: Sequence[Preview]) -> str:
    tables = []
    for preview in shown:
        head = "".join(f'<th scope="col">{each}</th>' for each in _HEADINGS)
        rows = []
        for rule, row in zip(_all(preview.explanation.rules), _rows(preview), strict=True):
            cells = "".join(f"<td>{html.escape(each)}</td>" for each in row)
            rows.append(f'<tr class="{rule.outcome.replace(" ", "-")}">{cells}</tr>')
        caption = f"<caption>{html.escape(_heading(preview))}</caption>"
        ending = "".join(f"<p>{html.escape(each)}</p>" for each in _ending(preview.explanation))
        body = "\n".join(rows)
        tables.append(
            f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>{ending}"
        )
    return _PAGE.format(title=html.escape(title), tables="\n".join(tables))


_STYLES: Mapping[Style, Callable[[str, Sequence[Preview]], str]] = {
    "text": _text,
    "markdown": _markdown,
    "html": _html,
}
