"""Write the reference pages from what the code itself reads: schemas, manifests, filters, codes, commands.

A page says what a schema says, so it is mended there. Snippets are cut from files that lint clean, and what
`hub lint` says in an example is what it really says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from inspect import cleandoc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import yaml

from engine.braces import TESTS
from engine.diagnostics import Diagnostic, codes_page, render
from engine.documents import Document, read_document
from engine.filters import filters_page
from engine.lint import lint_file
from engine.manifest import (
    COMMON_NAMES,
    CREATE_NAMES,
    GET_NAMES,
    GONE_NAMES,
    ITEM_NAMES,
    LOOKUP_NAMES,
    PART_NAMES,
    POLL_NAMES,
    REVOKE_NAMES,
    SUBSCRIBE_NAMES,
    SUBSCRIPTION_NAMES,
    THEN_NAMES,
    UPDATE_NAMES,
    WRITE_NAMES,
    load_connector,
    load_platform,
)
from engine.schema import TYPE_WORDS, load_schema
from engine.templates import check_template, load_template

Schema = Mapping[str, Any]

PROJECT = Path(__file__).resolve().parent.parent
EXAMPLES = PROJECT / "docs" / "examples"
CONNECTOR, PLATFORM = "connectors/juniper.yaml", "connectors/platform.yaml"
TEMPLATE = "mapping-templates/juniper/music-venue.yaml"
GENERATED = (
    "<!-- Written by `hub docs`. Change the schema, manifest or code it comes from, then run it again. -->"
)
LONGEST_CELL = 90  # characters of an example within a table


def write_reference(folder: Path) -> list[Path]:
    """Write every page the engine knows into a folder, and return the files; other files are left alone."""
    return write_pages(folder, reference_pages())


def write_pages(folder: Path, pages: Mapping[str, str]) -> list[Path]:
    """Write pages, given by their name below the folder; pages of connectors that are gone are removed."""
    files = []
    for name, text in pages.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        files.append(file)
    for old in set((folder / "connectors").glob("*.md")) - set(files):
        old.unlink()
    return files


def reference_pages() -> dict[str, str]:
    """Return the pages the engine knows, as Markdown by file name."""
    connector, platform, template = (
        read_document(EXAMPLES / name) for name in (CONNECTOR, PLATFORM, TEMPLATE)
    )
    manifests = sorted(
        path for path in (PROJECT / "connectors").glob("*.yaml") if path.name != "platform.yaml"
    )
    real = [read_document(path) for path in manifests]
    pages = {
        "manifest.md": schema_page("connector", [connector, *real], "What a file in `connectors/` may say.")
        + names_section(),
        "platform.md": schema_page(
            "platform",
            [platform],
            "What the file named by `HUB_PLATFORM` may say: `connectors/platform.yaml`.",
        ),
        "mapping-templates.md": schema_page(
            "mapping-template",
            [template],
            "What a file in `mapping-templates/<connector>/` may say. See also [filters](filters.md).",
        ),
        "filters.md": filters_page(TESTS),
        "diagnostics.md": diagnostics_page(),
    }
    for document in real:
        pages[f"connectors/{document.data['connector']}.md"] = connector_page(document)
    return pages


# ---- a page for a schema -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Block:
    """A group of keys with a section of its own. `labels` are what leads to it, `places` where it stands."""

    schema: Schema
    labels: list[str] = field(default_factory=list)
    places: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def title(self) -> str:
        return ", ".join(self.labels)


class _SchemaPage:
    """Walks a schema: a section for each group of keys, then one for the forms a value can have."""

    def __init__(self, root: Schema, sources: list[Document]) -> None:
        self.root = root
        self.sources = sources
        self.blocks: dict[str, _Block] = {}
        self._find(root, "", "the file", ())

    # -- looking through the schema

    def resolve(self, schema: Schema) -> tuple[str | None, Schema]:
        """Follow a reference; returns the definition's name, and it with what stands beside the reference."""
        name: str | None = None
        while "$ref" in schema:
            own = {key: value for key, value in schema.items() if key != "$ref"}
            name = str(schema["$ref"]).removeprefix("#/definitions/")
            schema = {**self.root["definitions"][name], **own}
        return name, schema

    def _find(
        self,
        schema: Schema,
        name: str,
        label: str,
        place: tuple[str, ...],
        above: frozenset[str] = frozenset(),
    ) -> None:
        """Note every block at or below a schema, as a reader meets them; `above` are those it is in.

        What can hold itself, as the items of a list can, is looked into once.
        """
        reference, _ = self.resolve(schema)
        if reference in above:
            return
        above |= {reference} if reference else set()
        for key, part in self._groups(schema, name or label):
            block = self.blocks.setdefault(key, _Block({**part, **self._own_words(key)}))
            if label not in block.labels:
                block.labels.append(label)
            block.places.append(place)
            for group in (part, *(variant for _, variant in _variants(part))):
                for inner, its in group.get("properties", {}).items():
                    self._find(its, f"{key}.{inner}", f"`{inner}`", (*place, inner), above)
        for holder, inner in self._inside(schema):
            word = "each of " if holder == "map" else "an item of "
            self._find(inner, f"{name}.*", f"{word}{label}", (*place, "*"), above)

    def _own_words(self, name: str) -> Schema:
        """Return what a definition says of itself; where it is used more may be said, of one use only."""
        definition = self.root["definitions"].get(name, {})
        return {"description": definition["description"]} if "description" in definition else {}

    def _groups(self, schema: Schema, name: str) -> Iterator[tuple[str, Schema]]:
        """Yield what a value may be that is a group of known keys, with a key that tells groups apart."""
        reference, found = self.resolve(schema)
        name = reference or name
        if "properties" in found:
            yield name, found
            return
        for branch in _branches(found):
            yield from self._groups(branch, name)

    def _inside(self, schema: Schema) -> Iterator[tuple[str, Schema]]:
        """Yield what a value may hold: each value of a map, each item of a list."""
        _, found = self.resolve(schema)
        if isinstance(found.get("additionalProperties"), Mapping):
            yield "map", found["additionalProperties"]
        if isinstance(found.get("items"), Mapping):
            yield "list", found["items"]
        if "properties" not in found:
            for branch in _branches(found):
                yield from self._inside(branch)

    # -- writing

    def text(self) -> str:
        parts = [self._section(block, depth=2) for block in self.blocks.values()]
        return "\n".join([*parts, self._forms()])

    def _section(self, block: _Block, depth: int) -> str:
        lines = [f"{'#' * depth} {block.title[0].upper()}{block.title[1:]}", ""]
        if block.schema.get("description"):
            lines += [block.schema["description"], ""]
        lines += self._table(block.schema)
        snippet = None if _variants(block.schema) else self._snippet(block)
        if snippet:
            lines += ["```yaml", snippet, "```", ""]
        for kind, variant in _variants(block.schema):
            lines += [f"{'#' * (depth + 1)} {block.labels[0]} with `type: {kind}`", ""]
            lines += [variant["description"], ""]
            own = {key: each for key, each in variant["properties"].items() if key != "type"}
            lines += self._table({**variant, "properties": own})
            lines += ["```yaml", self._made(block, kind, variant), "```", ""]
        return "\n".join(lines)

    def _table(self, schema: Schema) -> list[str]:
        if not schema["properties"]:
            return []
        lines = ["| Key | Takes | Default | What it is | Example |", "|---|---|---|---|---|"]
        needed = set(schema.get("required", ()))
        for key, each in schema["properties"].items():
            _, found = self.resolve(each)
            default = f"`{_flow(found['default'])}`" if "default" in found else ""
            if key in needed:
                default = "needed"
            says = str(found.get("description", ""))
            example = next((_flow(value) for value in found.get("examples", ())), "")
            shown = f"`{example}`" if example and len(example) <= LONGEST_CELL else ""
            lines.append(
                "| " + " | ".join(map(_cell, (f"`{key}`", self.takes(each), default, says, shown))) + " |"
            )
        if isinstance(schema.get("additionalProperties"), Mapping):
            takes = self.takes(schema["additionalProperties"])
            lines.append(f"| any other name | {_cell(takes)} | | | |")
        return [*lines, ""]

    def takes(self, schema: Schema) -> str:
        """Say what a value may be, with links to the sections that say more."""
        said = list(dict.fromkeys(self._takes(schema, None)))
        return " or ".join(said) or "anything"

    def _takes(self, schema: Schema, name: str | None) -> Iterator[str]:
        reference, found = self.resolve(schema)
        name = reference or name
        if "properties" in found:
            blocks = self.blocks
            block = blocks.get(name or "") or next(each for each in blocks.values() if each.schema == found)
            yield f"[keys](#{_slug(block.title)})"
        elif name in self._form_names() and reference:
            yield f"[{_form(name)}](#forms-of-values)"
        elif "enum" in found:
            yield ", ".join(f"`{_flow(value)}`" for value in found["enum"])
        elif any(True for _ in _branches(found)):
            for branch in _branches(found):
                yield from self._takes(branch, name)
        elif isinstance(found.get("items"), Mapping):
            if "string" in found["type"]:
                yield TYPE_WORDS["string"]
            yield f"a list, each {self.takes(found['items'])}"
        elif isinstance(found.get("additionalProperties"), Mapping):
            yield f"names, each with {self.takes(found['additionalProperties'])}"
        elif "type" in found:
            kinds = [found["type"]] if isinstance(found["type"], str) else found["type"]
            yield from (_bounded(TYPE_WORDS[kind], found) for kind in kinds)

    def _form_names(self) -> set[str]:
        """Return the definitions that are one text in a form of its own."""
        return {
            name
            for name, each in self.root["definitions"].items()
            if each.get("type") == "string" or name in ("status", "statuses")
        }

    def _forms(self) -> str:
        lines = ["## Forms of values", "", "| Form | What it is | Examples |", "|---|---|---|"]
        for name, each in self.root["definitions"].items():
            if name in self._form_names():
                examples = ", ".join(f"`{_flow(value)}`" for value in each["examples"])
                cells = (_form(name), each["description"], examples)
                lines.append("| " + " | ".join(map(_cell, cells)) + " |")
        return "\n".join([*lines, ""])

    def _snippet(self, block: _Block) -> str | None:
        """Cut the block out of an example file, with its comments; None where no example has it."""
        for steps, document in self._uses(block):
            if steps and isinstance(document.value(steps), Mapping):
                return _cut(document, steps)
        return next((_cut(document, steps) for steps, document in self._uses(block) if steps), None)

    def _uses(self, block: _Block) -> Iterator[tuple[tuple[str | int, ...], Document]]:
        for document in self.sources:
            for place in block.places:
                for steps in _matches(document.data, place):
                    yield steps, document

    def _made(self, block: _Block, kind: str, variant: Schema) -> str:
        """Make an example of one type: its `type` and the keys it needs."""
        key = block.places[0][-1]
        for steps, document in self._uses(block):
            value = document.value(steps)
            if isinstance(value, Mapping) and value.get("type") == kind and isinstance(steps[-1], str):
                return _cut(document, steps) or ""
        needed = [each for each in variant.get("required", ()) if each != "type"]
        values = {each: self.resolve(variant["properties"][each])[1]["examples"][0] for each in needed}
        return _yaml({key: {"type": kind, **values}})


def schema_page(name: str, sources: list[Document], says: str) -> str:
    """Return the page of a schema; `sources` are files that lint clean, to cut examples from."""
    schema = load_schema(name)
    whole = sources[0].text.split("\n", 1)[1]
    page = _SchemaPage(schema, sources)
    head = [
        GENERATED,
        f"# {schema['title']}",
        "",
        f"{schema['description']} {says}",
        "",
        "A whole one:",
        "",
        "```yaml",
        whole.rstrip(),
        "```",
        "",
    ]
    return "\n".join([*head, page.text()])


NAMES: Mapping[str, frozenset[str]] = {
    "any call": COMMON_NAMES,
    "`get`": GET_NAMES,
    "`create`, `find`, calls that write many, and `new`": CREATE_NAMES,
    "`update`, `retire`": WRITE_NAMES,
    "`delete`, `archive`": GONE_NAMES,
    "`update`, where `updates` is `whole` or `versioned`": UPDATE_NAMES,
    "`item`, `body_of_each`, and the operations of a `write_job`": ITEM_NAMES,
    "`poll` of a `write_job`": POLL_NAMES,
    "a call of `then`": THEN_NAMES,
    "a call of `parts`": PART_NAMES,
    "a lookup of `after_connecting` with `Authorization`": LOOKUP_NAMES,
    "`revoke`": REVOKE_NAMES,
    "`create` of a `subscription` to webhooks": SUBSCRIBE_NAMES,
    "`check`, `renew` and `delete` of a `subscription`": SUBSCRIPTION_NAMES,
}


def names_section() -> str:
    """Return the section on what placeholders and templates of each call see."""
    lines = [
        "## Names",
        "",
        "What `{names}` of a call and templates in its query, headers and body may use:",
        "",
    ]
    lines += ["| In | Names |", "|---|---|"]
    lines += [f"| {where} | {_words(sorted(names))} |" for where, names in NAMES.items()]
    lines += [
        "",
        "`credentials` holds those that are not secret. A call with `for_each` also sees its name, one with",
        "`with` those it makes, and a read those of its places that are written `name …`.",
        "",
    ]
    return "\n".join(["", *lines])


def _branches(schema: Schema) -> Iterator[Schema]:
    """Yield what a value may be by its kind; a choice by `type` is no branch of this sort."""
    for each in schema.get("allOf", ()):
        if "$ref" in each:
            yield each
        elif "if" in each and "properties" not in each["if"]:
            yield each["then"] if "$ref" in each["then"] else {**each["if"], **each["then"]}


def _variants(schema: Schema) -> list[tuple[str, Schema]]:
    """Return what a block may be by its `type`."""
    return [
        (each["if"]["properties"]["type"]["const"], each["then"])
        for each in schema.get("allOf", ())
        if "properties" in each.get("if", {})
    ]


def _form(name: str) -> str:
    """Say what a form of value is called."""
    return "call" if name == "calltext" else name.replace("_", " ")


def _bounded(word: str, schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{word}, {low} to {high}"
    return f"{word}, {low} or more" if low is not None else word


def _matches(value: Any, place: tuple[str, ...]) -> Iterator[tuple[str | int, ...]]:
    """Yield every path of a document that a place stands for; `*` is any key or item."""
    if not place:
        yield ()
        return
    step, rest = place[0], place[1:]
    found: list[tuple[str | int, Any]] = []
    if isinstance(value, Mapping):
        found = [(key, inner) for key, inner in value.items() if step in ("*", key)]
    elif isinstance(value, list) and step == "*":
        found = list(enumerate(value))
    for key, inner in found:
        for more in _matches(inner, rest):
            yield (key, *more)


def _cut(document: Document, steps: tuple[str | int, ...]) -> str | None:
    """Return the lines of one value with its key; None for one that can't be cut out by lines."""
    line, column, _ = document.place(steps, key=True)
    lines = document.text.split("\n")
    first = lines[line - 1]
    before = first[: column - 1]
    if before.strip() not in ("", "-"):
        return None
    indent = before.index("-") if isinstance(steps[-1], int) and "-" in before else column - 1
    taken = [" " * indent + first[indent:]]
    for each in lines[line:]:
        if each.strip() and len(each) - len(each.lstrip()) <= indent:
            break
        taken.append(each)
    return "\n".join(each[indent:].rstrip() for each in taken).rstrip()


# ---- diagnostics -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Planted:
    """A fault in one of the example files: text replaced, or the whole file made of other bytes."""

    file: str
    old: str = ""
    new: str | bytes = ""
    also: tuple[str, str] = ("", "")
    name: str = ""  # the file under another name


def _in(file: str) -> Callable[..., _Planted]:
    def planted(old: str = "", new: str | bytes = "", **more: Any) -> _Planted:
        return _Planted(file, old, new, **more)

    return planted


_manifest, _platform, _template = _in(CONNECTOR), _in(PLATFORM), _in(TEMPLATE)

# How an author comes by each code.
PLANTED: Mapping[str, _Planted] = {
    "unreadable": _Planted("connectors/junipr.yaml"),
    "too-large": _manifest("", b"# " + b"-" * (1024 * 1024)),
    "encoding": _manifest("", "title: Café\n".encode("latin-1")),
    "bad-character": _manifest("title: Juniper Point", "title: Juniper\x07 Point"),
    "empty-file": _manifest("", b""),
    "syntax": _manifest("title: Juniper Point of Sale", "title: Juniper: Point of Sale"),
    "tab": _manifest("  concurrent: 4", "\tconcurrent: 4"),
    "too-deep": _manifest("title: Juniper Point of Sale", f"title: {'[' * 51}{']' * 51}"),
    "second-document": _manifest("\nretries:", "\n---\nretries:"),
    "directive": _manifest("# yaml-language-server:", "%YAML 1.1\n---\n#"),
    "anchor": _manifest("retries: {", "retries: &patient {"),
    "alias": _manifest("retries: {attempts: 4, longest_wait: 20 seconds}", "retries: *patient"),
    "merge-key": _manifest("retries: {attempts: 4", "retries: {<<: {attempts: 4}"),
    "tag": _manifest("concurrent: 4", "concurrent: !!int 4"),
    "duplicate-key": _manifest("    update: PUT /customers/{id}", "    get: GET /customer/{id}"),
    "key-not-text": _manifest("title: Juniper", "404: nothing\ntitle: Juniper"),
    "unquoted-braces": _template('push: "{{ venue.currency }}"', "push: {{ venue.currency }}"),
    "unknown-kind": _manifest("manifest: 1  ", "manfest: 1  "),
    "wrong-name": _manifest(name="connectors/jupiter.yaml"),
    "unknown-key": _manifest("      pagination:", "      paginaton:"),
    "missing-key": _manifest("check: GET /merchant ", "# check: GET /merchant "),
    "wrong-type": _manifest("at_most: 1000", 'at_most: "1000"'),
    "unknown-value": _manifest("type: cursor,", "type: curser,"),
    "wrong-form": _manifest("lookback: 5 minutes", "lookback: 5 mins"),
    "out-of-range": _manifest("at_most: 100}", "at_most: 0}"),
    "too-few": _manifest('new: {type: ITEM, id: "#{{ key }}"}', "new: {}"),
    "repeated-item": _manifest("[customers.read, customers.write]", "[customers.read, customers.read]"),
    "bad-path": _manifest("changed_at: updated_at", "changed_at: times..updated_at"),
    "bad-expression": _manifest("code: errors[0].code", "code: errors[0]code "),
    "bad-template": _template("value | minor_units(", "value | minor_unit("),
    "bad-place": _manifest("records: body objects", "records: body objects[x]"),
    "bad-pattern": _manifest(
        "  refresh_before_expiry: 5 minutes",
        '  credentials: {shop: {title: Shop, pattern: "^[a-z+$"}}\n  refresh_before_expiry: 5 minutes',
    ),
    "unreachable-rule": _manifest(
        "    - {status: 5xx, then: retry}",
        "    - {status: 5xx, then: retry}\n    - {status: 503, then: wait}",
    ),
    "no-effect": _manifest(
        "{status: 5xx, then: retry}", "{status: 5xx, then: retry, for: header Retry-After}"
    ),
    "missing-operation": _template(
        "direction: bidirectional", "direction: push", also=("    update: PUT", "    delete: DELETE")
    ),
    "missing-pagination": _manifest(
        "      pagination: {type: cursor, read: next_cursor, send: query cursor}\n"
    ),
    "body-on-get": _manifest("since: query updated_after", "since: body updated_after"),
    "unused-id": _manifest("get: GET /customers/{id}", "get: GET /customers"),
    "unused-name": _manifest("since: query updated_after", "since: name updated_after"),
    "unsigned-value": _manifest(
        "check: GET /merchant ",
        "webhooks:\n"
        "  signature: {type: hmac_sha256, read: header X-Signature}\n"
        "  event: {id: header X-Event, type: type, record: id}\n"
        "  events: {customer.updated: {pull: customer}}\n"
        "check: GET /merchant ",
    ),
    "unknown-placeholder": _manifest("get: GET /customers/{id}", "get: GET /customers/{ide}"),
    "unknown-credential": _manifest(
        "  type: oauth2", "  type: bearer\n  credentials: {apiKey: {title: API key}}\n  token: apikey"
    ),
    "unknown-connection-value": _manifest("account: merchant_id", "account: merchnt_id"),
    "unknown-method": _manifest("  - call:", "  - for: [oauth]\n    call:"),
    "kept-secret": _manifest(
        "  keep: {merchant_id",
        '  credentials: {shop: {title: Shop}}\n  keep: {shop: "{{ shop }}", merchant_id',
    ),
    "unknown-call": _manifest("  concurrent: 4", "  concurrent: 4\n  calls: {GET /customer: 1 per second}"),
    "unknown-environment": _manifest("sandbox: 5 per", "sandbax: 5 per"),
    "duplicate-name": _manifest(
        "  type: oauth2",
        "  - {name: key, type: none}\n  - {name: key, type: none}\nignored:",
    ),
    "field-conflict": _manifest(
        "      description: text", "      description: text\n      description.html: text"
    ),
    "unknown-connector": _template("connector: juniper", "connector: junpier"),
    "wrong-connector": _template("connector: juniper", "connector: hazel"),
    "unknown-template": _template("\nsuits:", "\nextends: defualt\n\nsuits:"),
    "circular-template": _template("\nsuits:", "\nextends: music-venue\n\nsuits:"),
    "unchecked": _template("", "", also=("then: wait", "then: weit")),
    "unknown-entity": _template("- entity: event", "- entity: events"),
    "unknown-resource": _template("resource: item", "resource: items"),
    "unknown-field": _template("email: email_address", "email: email_adress"),
    "read-only": _template("      last_name: family_name", "      member_since: updated_at"),
    "required-field": _template("      name: name\n"),
    "written-twice": _template("description: description", "description: name"),
    "unwritable-field": _template('external_id\n        push: "{{ value }}"', "external_id"),
    "duplicate-mapping": _template(
        "  - entity: order",
        "  - {entity: event, resource: item, direction: push, fields: {name: name}}\n  - entity: order",
    ),
}


def diagnostics_page() -> str:
    """Return the page of all codes, each with what `hub lint` says of an example."""
    sections = re.split(r"(?m)^(?=## )", codes_page())
    out = [GENERATED + "\n" + sections[0]]
    for section in sections[1:]:
        code = section[3:].split("\n", 1)[0]
        out.append(f"{section.rstrip()}\n\n```text\n{example_of(code)}\n```\n\n")
    return "".join(out).rstrip() + "\n"


def example_of(code: str) -> str:
    """Return what an author is told when a file has the fault this code stands for."""
    planted = PLANTED[code]
    with TemporaryDirectory() as folder:
        files = _planted_files(planted)
        for name, content in files.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        found = _told(Path(folder), planted, code)
        texts = {name: content.decode("utf-8", "replace") for name, content in files.items()}
        first = next(each for each in found if each.code == code)
        shown = replace(
            first,
            file=planted.name or planted.file,
            message=first.message.replace(f"{folder}/", ""),
            help=tuple(each.replace(f"{folder}/", "") for each in first.help),
        )
    return render([shown], "text", texts).rstrip().rsplit("\n", 1)[0]  # all but where to read this page


def _planted_files(planted: _Planted) -> dict[str, bytes]:
    files = {name: (EXAMPLES / name).read_text("utf-8") for name in (CONNECTOR, PLATFORM, TEMPLATE)}
    files[CONNECTOR] = files[CONNECTOR].replace(*planted.also) if planted.also[0] else files[CONNECTOR]
    done = {name: text.encode() for name, text in files.items()}
    if planted.file not in files:
        return done
    if isinstance(planted.new, bytes):
        return {**done, planted.file: planted.new}
    if planted.old and planted.old not in files[planted.file]:
        raise ValueError(f"the example file doesn't hold {planted.old!r}")
    text = files[planted.file].replace(planted.old, planted.new, 1) if planted.old else files[planted.file]
    return {**done, planted.name or planted.file: text.encode()}


def _told(folder: Path, planted: _Planted, code: str) -> list[Diagnostic]:
    file = folder / (planted.name or planted.file)
    if code != "wrong-connector":
        return lint_file(file)
    # Seen only where a template is loaded for a connector, as the server does with a connector's folder.
    connector, platform = load_connector(folder / CONNECTOR), load_platform(folder / PLATFORM)
    return check_template(read_document(file), connector, platform)[1]


# ---- a page for a connector --------------------------------------------------------------------------

READS = ("list", "changes", "get", "get_many")
WRITES = ("create", "update", "delete", "archive", "retire", "create_many", "update_many", "write_many")


def connector_page(document: Document) -> str:
    """Return the page of one connector, from its manifest."""
    data = document.data
    lines = [GENERATED, f"# {data['title']}", "", f"Manifest: `connectors/{data['connector']}.yaml`."]
    lines += [
        f"The provider's own documentation: <{data['docs']}>.",
        "",
        "| Environment | Address |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {address} |" for name, address in data["server"].items()]
    lines += [
        "",
        *_auth_lines(data),
        *_limit_lines(data),
        *_template_lines(data["connector"]),
        "## Resources",
        "",
    ]
    for name, resource in data["resources"].items():
        lines += _resource_lines(name, resource)
    lines += _rule_lines(data)
    return "\n".join(lines).rstrip() + "\n"


def _auth_lines(data: Mapping[str, Any]) -> list[str]:
    lines = ["## Connecting", ""]
    for method in data["auth"] if isinstance(data["auth"], list) else [data["auth"]]:
        named = f"`{method['name']}`: requests" if "name" in method else "Requests"
        lines += [f"{named} are signed with `{method['type']}`.", ""]
        if method["type"] == "oauth2":
            prefix = data["connector"].upper()
            lines += [
                f"The app registered with the provider is `{prefix}_CLIENT_ID` and `{prefix}_CLIENT_SECRET`.",
                "",
            ]
            scopes = _words(method["scopes"]) if method.get("scopes") else "everything the app may do"
            lines += [f"Asked for at the consent page: {scopes}.", ""]
        if method.get("credentials"):
            lines += ["| Credential | What it is | Form |", "|---|---|---|"]
            for name, each in method["credentials"].items():
                pattern = f"`{each['pattern']}`" if "pattern" in each else ""
                lines.append("| " + " | ".join(map(_cell, (f"`{name}`", each["title"], pattern))) + " |")
            lines.append("")
    if data.get("connection"):
        lines += ["| Value of the connection | What it is | Form |", "|---|---|---|"]
        for name, each in data["connection"].items():
            pattern = f"`{each['pattern']}`" if "pattern" in each else ""
            lines.append("| " + " | ".join(map(_cell, (f"`{name}`", each["title"], pattern))) + " |")
        lines += ["", "A venue may give these when it connects; those it leaves out are found.", ""]
    check = data["check"] if isinstance(data["check"], str) else data["check"]["call"]
    lines += [f"Credentials are proved with `{check}`.", ""]
    for lookup in data.get("after_connecting", ()):
        lines += [f"Learned then with `{lookup['call']}`: {_words(lookup['keep'])}.", ""]
    return lines


def _limit_lines(data: Mapping[str, Any]) -> list[str]:
    limits = data.get("limits")
    if not limits:
        return []
    requests = limits.get("requests")
    lines = ["## Limits kept to", ""]
    if isinstance(requests, str):
        lines.append(f"- {requests} for an account")
    lines += (
        [f"- {rate} for an account in `{name}`" for name, rate in (requests or {}).items()]
        if isinstance(requests, Mapping)
        else []
    )
    if "each_call" in limits:
        lines.append(f"- {limits['each_call']} for each method and path")
    lines += [f"- {rate} for `{call}`" for call, rate in limits.get("calls", {}).items()]
    lines.append(f"- {limits.get('concurrent', 4)} calls at once")
    if "read" in limits:
        lines.append(f"- what answers say is left, in `{limits['read']['remaining']}`")
    return [*lines, ""]


def _template_lines(name: str) -> list[str]:
    connector = load_connector(PROJECT / "connectors" / f"{name}.yaml")
    platform = load_platform(PROJECT / "connectors" / "platform.yaml")
    lines = ["## Mapping templates", "", "| Template | Called | Suits | Maps |", "|---|---|---|---|"]
    for path in sorted((PROJECT / "mapping-templates" / name).glob("*.yaml")):
        template = load_template(path, connector, platform)
        venues = _words(template.suits.venue_types) if template.suits.venue_types else "any venue"
        arrows = {"push": "→", "pull": "←", "bidirectional": "↔"}
        maps = [
            f"{each['entity']} {arrows[each['direction']]} {each['resource']}" for each in template.written
        ]
        lines.append(f"| `{template.name}` | {template.title} | {venues} | {', '.join(maps)} |")
    return [*lines, ""]


def _resource_lines(name: str, resource: Mapping[str, Any]) -> list[str]:
    lines = [f"### {name}", "", "| Does | Call | Notes |", "|---|---|---|"]
    for key in (*READS, *WRITES):
        if key in resource:
            call = resource[key]
            text = call if isinstance(call, str) else call.get("call", "an update")
            notes = "" if isinstance(call, str) else _notes(call)
            lines.append("| " + " | ".join(map(_cell, (f"`{key}`", f"`{text}`", notes))) + " |")
    lines.append("")
    facts = []
    if "immutable" in resource:
        facts.append(f"{_words(resource['immutable'])} can't change: a new value makes a new record.")
    if resource.get("updates") == "whole":
        facts.append("An update replaces the whole record, so it is read and merged first.")
    if resource.get("one_write_at_a_time"):
        facts.append("One write at a time.")
    lines += [" ".join(facts), ""] if facts else []
    lines += ["| Field | Type | |", "|---|---|---|"]
    for path, each in resource["fields"].items():
        spec = {"type": each} if isinstance(each, str) else each
        kind = "one of " + _words(spec["one_of"]) if "one_of" in spec else spec.get("type", "text")
        marks = [
            *(["needed"] if spec.get("required") else []),
            *(["read only"] if spec.get("read_only") else []),
            *(["only when created"] if "only_on" in spec else []),
            *([f"at most {spec['at_most']} characters"] if "at_most" in spec else []),
        ]
        lines.append(f"| `{path}` | {kind} | {', '.join(marks)} |")
    return [*lines, ""]


def _notes(call: Mapping[str, Any]) -> str:
    pages = call.get("pagination", {}).get("type")
    size = call.get("page_size", {}).get("at_most")
    notes = [
        *([f"pages by `{pages}`"] if pages else []),
        *([f"{size} a page"] if size else []),
        *([f"only changes since a moment: `{call['since']}`"] if "since" in call else []),
        *([f"reaches back {call['reaches_back']}"] if "reaches_back" in call else []),
        *([f"{call['at_most']} in a call"] if "at_most" in call else []),
        *([f"sets `{_flow(call['set'])}`"] if "set" in call else []),
        *(["with an idempotency key"] if "idempotency_key" in call else []),
        *([f"once for each of `{call['for_each']['in']}`"] if "for_each" in call else []),
    ]
    return ", ".join(notes)


def _rule_lines(data: Mapping[str, Any]) -> list[str]:
    rules = data.get("errors", {}).get("rules", ())
    if not rules:
        return []
    lines = ["## Failures", "", "The first rule that fits decides.", "", "| When | Then |", "|---|---|"]
    for rule in rules:
        conditions = {key: value for key, value in rule.items() if key not in ("then", "for")}
        when = " and ".join(f"{key} {_rule_value(value)}" for key, value in conditions.items()) or "always"
        then = f"`{rule['then']}`" + (f", as long as `{rule['for']}` says" if "for" in rule else "")
        lines.append(f"| {_cell(when)} | {_cell(then)} |")
    return [*lines, ""]


def _rule_value(value: Any) -> str:
    if isinstance(value, list):
        return " or ".join(f"`{each}`" for each in value)
    if isinstance(value, Mapping):
        return " ".join(f"`{name}: {each}`" for name, each in value.items())
    return f"`{value}`"


# ---- the command line --------------------------------------------------------------------------------


def command_line_page(program: str, group: click.Group) -> str:
    """Return the page of a command and all its subcommands, in the order of their names."""
    lines = [GENERATED, "# The command line", "", group.help or "", ""]
    lines += ["Exit status: 0 done and clean, 1 something was found or failed, 2 misuse.", ""]
    lines += _group_lines(program, group)
    return "\n".join(lines).rstrip() + "\n"


def _group_lines(program: str, group: click.Group) -> list[str]:
    lines: list[str] = []
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            lines += _group_lines(f"{program} {name}", command)
        else:
            lines += _command_lines(program, name, command)
    return lines


def _command_lines(program: str, name: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=name)
    words = []
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            word = parameter.make_metavar(context)
            words.append(word)
    options = [each for each in command.params if isinstance(each, click.Option)]
    usage = " ".join([program, name, *(["[OPTIONS]"] if options else []), *words])
    lines = [f"## {program} {name}", "", f"`{usage}`", "", *cleandoc(command.help or "").split("\n"), ""]
    if not options:
        return lines
    lines += ["| Option | Default | What it does |", "|---|---|---|"]
    for option in options:
        spelled = ", ".join(f"`{each}`" for each in option.opts)
        if not option.is_flag:
            spelled += f" `{option.make_metavar(context)}`"
        default = option.get_default(context)
        plain = isinstance(default, str | int | float) and not isinstance(default, bool) and default != "-"
        says = " ".join([option.help or "", *(["Needed."] if option.required else [])])
        lines.append(
            "| " + " | ".join(map(_cell, (spelled, f"`{default}`" if plain else "", says.strip()))) + " |"
        )
    return [*lines, ""]


# ---- shared ------------------------------------------------------------------------------------------


def _words(words: Any) -> str:
    return ", ".join(f"`{each}`" for each in words) or "nothing"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _slug(title: str) -> str:
    """Return the anchor a heading gets where Markdown is shown."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def _flow(value: Any) -> str:
    """Write a value as an author would, on one line."""
    return _dumped(value, flow=True).removesuffix("\n").removesuffix("\n...")


def _yaml(value: Any) -> str:
    return _dumped(value, flow=None).rstrip()


def _dumped(value: Any, *, flow: bool | None) -> str:
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=flow, width=10_000, allow_unicode=True, sort_keys=False
    )
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes as the project's own files do."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if set("'{#") & set(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _quoted)
