"""The meaning behind the shape: names that resolve, rules that can fire, operations that exist.

A file is checked whole: what is wrong with its shape and its expressions is reported together with what is
wrong with its meaning, in file order. Parts whose shape is wrong are left out of the closer look.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Any

from engine.diagnostics import Diagnostic, did_you_mean, in_file_order, listed, nearest
from engine.documents import Document, Steps, read_document
from engine.errors import DocumentError, ExpressionError
from engine.expressions import Expression, Path, has_braces
from engine.fields import declared_field
from engine.manifest import (
    COMMON_NAMES,
    CREATE_NAMES,
    GET_NAMES,
    GONE_NAMES,
    LOOKUP_NAMES,
    PART_NAMES,
    PLACEHOLDER,
    POLL_NAMES,
    SUBSCRIBE_NAMES,
    SUBSCRIPTION_NAMES,
    THEN_NAMES,
    UPDATE_NAMES,
    WRITE_NAMES,
    Connector,
    Entity,
    Platform,
    Resource,
    check_connector,
    check_platform,
    check_price_list,
    parse_statuses,
    revoke_names,
    unsent_fields,
)
from engine.mapping import COPY
from engine.schema import violations
from engine.signatures import DIGESTS, HMACS, SignedText

KINDS: Mapping[str, str] = {
    "manifest": "connector",
    "platform": "platform",
    "template": "mapping-template",
    "prices": "price-list",
}
CALL = re.compile(r"(GET|POST|PUT|PATCH|DELETE) \S+")
WHOLE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
WHOLE_OR_BARE = re.compile(r"(?:\{\{)?\s*(\w+)\s*(?:\}\})?")
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
MEMBER = re.compile(r"(?<![\w.])(record|venue)\.([A-Za-z_]\w*)")
READS = ("list", "changes", "get", "get_many")
WRITES = ("create", "update", "delete", "retire")
BATCHES = ("create_many", "update_many", "write_many")
FORESEEABLE = ("offset", "page_number")  # pagination whose next request doesn't wait for the page's content
LENGTHY = ("text", "email", "phone", "url", "id", "any")
HMAC = frozenset(f"hmac_{name}" for name in HMACS)
SIGNED_TEXT = HMAC | frozenset(DIGESTS) | {"public_key"}
SECRET_VALUE = frozenset({"secret_header", "secret_field"})
TOKENS = frozenset({"jwt", "detached_jws"})  # which carry their time themselves
# Keys of a signature that only some types look at.
SCHEME_KEYS: Mapping[str, frozenset[str]] = {
    "signs": SIGNED_TEXT,
    "form": SIGNED_TEXT,
    "encoding": SIGNED_TEXT | SECRET_VALUE,
    "timestamp": SIGNED_TEXT,
    "tolerance": SIGNED_TEXT | TOKENS,
    "key_is": HMAC | {"jwt"},
    "secret_prefix": HMAC | {"public_key", "jwt"},
    "digest": frozenset({"public_key"}),
    "padding": frozenset({"public_key"}),
    "algorithm": frozenset({"jwt"}),
    "keys": frozenset({"public_key", "jwt"}),
    "parameter": frozenset({"secret_url"}),
    "read": SIGNED_TEXT | SECRET_VALUE | TOKENS,
    "separator": SIGNED_TEXT | SECRET_VALUE | TOKENS,
    "prefix": SIGNED_TEXT | SECRET_VALUE | TOKENS,
}
NAMED_HEADER = re.compile(r"""\bheaders(?:\[['"]([^'"]+)['"]\]|\.(?:"([^"]+)"|([A-Za-z0-9_]+)))""")
NAMED_FIELD = re.compile(r"\bpayload((?:\.[A-Za-z_]\w*|\[[0-9]+\]|\[['\"][^'\"]+['\"]\])+)")
FILTER_NAME = re.compile(r"\|\s*\w+")
FIELD_PATH = re.compile(r"(?<![\w.\]])([A-Za-z_]\w*(?:\.[A-Za-z_]\w*|\[[0-9]+\])*)")
NO_FIELDS = frozenset({"if", "else", "and", "or", "not", "is", "in", "defined", "none", "true", "false"})


def lint_file(file: FilePath) -> list[Diagnostic]:
    """Return everything wrong with a manifest, mapping template or price list, told apart by its first key.

    A template is checked against `connectors/<connector>.yaml` and `connectors/platform.yaml` of the nearest
    folder above it that has a `connectors` folder.
    """
    try:
        document = read_document(file)
    except DocumentError as error:
        return list(error.diagnostics)
    kind = _kind(document)
    if kind is None:
        advice = did_you_mean(next(iter(document.data)), KINDS) if isinstance(document.data, dict) else ()
        message = "the file does not say what it is"
        begins = "a file begins with `manifest: 1`, `platform: 1`, `template: 1` or `prices: 1`"
        return [Diagnostic("unknown-kind", message, document.file, *document.place(()), (*advice, begins))]
    if kind == "price-list":
        return check_price_list(document)[1]
    named = "connector" if kind == "connector" else "name"
    found = _misnamed(document, named, file) if kind != "platform" else []
    if kind == "connector":
        return in_file_order([*lint_connector(document), *found])
    if kind == "platform":
        return lint_platform(document)
    return in_file_order([*_lint_template_file(document, file), *found])


def lint_connector(document: Document) -> list[Diagnostic]:
    """Return everything wrong with a connector's manifest, in file order."""
    _, found = check_connector(document)
    right = document.without([path for _, path in violations(document, "connector")])
    if not isinstance(right.data, dict):
        return found
    return in_file_order([*found, *_Manifest(right).problems()])


def lint_platform(document: Document) -> list[Diagnostic]:
    """Return everything wrong with a platform's manifest, in file order."""
    _, found = check_platform(document)
    right = document.without([path for _, path in violations(document, "platform")])
    if not isinstance(right.data, dict):
        return found
    return in_file_order([*found, *_platform_problems(right)])


def lint_template(document: Document, connector: Connector, platform: Platform) -> list[Diagnostic]:
    """Return everything wrong with a mapping template for a connector and a platform, in file order."""
    from engine.layering import is_inherited, repeated  # manifests are linted without these, and sooner
    from engine.templates import check_template, read_layers

    _, found = check_template(document, connector, platform)
    layers, _, base = read_layers(document, connector, platform)
    if layers is None:
        return found
    problems = list(_template_problems(layers.document, connector, platform))
    if base is not None:
        # What is wrong with the extended template by itself is told there.
        known = {(each.code, each.message) for each in _template_problems(base.document, connector, platform)}
        problems = [
            each for each in problems if not (is_inherited(each) and (each.code, each.message) in known)
        ]
        shaped = document.without([path for _, path in violations(document, "mapping-template")])
        problems += repeated(shaped, base)
    return in_file_order([*found, *problems])


def _kind(document: Document) -> str | None:
    data = document.data if isinstance(document.data, dict) else {}
    return next((kind for key, kind in KINDS.items() if key in data), None)


def _misnamed(document: Document, key: str, file: FilePath) -> list[Diagnostic]:
    name = document.data.get(key)
    if not isinstance(name, str) or name == file.stem:
        return []
    message = f"`{key}` says `{name}`, and the file is called `{file.name}`"
    return [document.diagnostic("wrong-name", message, (key,), f"write `{file.stem}`, or rename the file")]


def _lint_template_file(document: Document, file: FilePath) -> list[Diagnostic]:
    shape = [each for each, _ in violations(document, "mapping-template")]
    name = document.data.get("connector")
    above = file.resolve().parents
    folder = next((each / "connectors" for each in above if (each / "connectors").is_dir()), None)
    if not isinstance(name, str):
        return in_file_order(shape)
    if folder is None:
        message = "there is no `connectors` folder above this template, so its names cannot be checked"
        return in_file_order([*shape, document.diagnostic("unknown-connector", message, ("connector",))])
    manifests = {each.stem: each for each in sorted(folder.glob("*.yaml")) if each.name != "platform.yaml"}
    manifest = manifests.get(name)
    if manifest is None:
        known = list(manifests)
        message = f"there is no connector `{name}`"
        advice = (*did_you_mean(name, known), f"connectors are {listed(known)}")
        return in_file_order(
            [*shape, document.diagnostic("unknown-connector", message, ("connector",), *advice)]
        )
    connector = _connector_of(manifest, _changed(manifest))
    platform = _platform_of(folder / "platform.yaml", _changed(folder / "platform.yaml"))
    if connector is None or platform is None:
        broken = manifest.name if connector is None else "platform.yaml"
        message = f"`connectors/{broken}` has problems of its own, so the names here cannot be checked"
        return in_file_order([*shape, document.diagnostic("unchecked", message, ("connector",))])
    return lint_template(document, connector, platform)


def _changed(file: FilePath) -> int:
    """Return a number that changes when the file does, so that many templates read a connector once."""
    return file.stat().st_mtime_ns if file.is_file() else 0


@lru_cache(maxsize=64)
def _connector_of(file: FilePath, changed: int) -> Connector | None:
    try:
        connector, _ = check_connector(read_document(file, file=f"connectors/{file.name}"))
    except DocumentError:
        return None
    return connector


@lru_cache(maxsize=4)
def _platform_of(file: FilePath, changed: int) -> Platform | None:
    try:
        platform, _ = check_platform(read_document(file, file=f"connectors/{file.name}"))
    except DocumentError:
        return None
    return platform


# ---- connectors --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Manifest:
    """A connector's manifest whose shape is right, looked at for what it means."""

    document: Document

    def problems(self) -> Iterator[Diagnostic]:
        yield from self.servers()
        yield from self.budgets()
        yield from self.auth()
        yield from self.rules()
        yield from self.calls_outside_resources()
        for name, resource in self.group(("resources",)).items():
            if resource is not None:
                yield from self.resource(("resources", name))
        if self.group(("webhooks",)):
            yield from self.webhooks(("webhooks",))

    # -- looking things up

    def at(self, path: Steps) -> Any:
        """Return the value at a path, or None."""
        value = self.document.data
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def group(self, path: Steps) -> dict[str, Any]:
        """Return the keys at a path; none when there is something else."""
        value = self.at(path)
        return value if isinstance(value, dict) else {}

    def lacks(self, path: Steps, key: str) -> bool:
        """Whether a group has no such key; a misspelt one, which has been told of, is taken for it."""
        group = self.group(path)
        misspelt = any(value is None and nearest(other, [key]) for other, value in group.items())
        return key not in group and not misspelt

    def methods(self) -> list[Steps]:
        """Return the paths of the ways to sign."""
        value = self.at(("auth",))
        return [("auth", index) for index in range(len(value))] if isinstance(value, list) else [("auth",)]

    def credentials(self) -> set[str]:
        return {name for path in self.methods() for name in self.group((*path, "credentials"))}

    def kept(self) -> set[str]:
        """Return the names of the values kept in `connection`."""
        lookups = self.at(("after_connecting",)) or []
        places = [*self.methods(), *(("after_connecting", index) for index in range(len(lookups)))]
        found = {name for path in places for name in self.group((*path, "keep"))}
        found |= {name for path in self.methods() for name in self.group((*path, "keep_from_callback"))}
        return found | set(self.group(("connection",)))

    def report(
        self,
        code: str,
        message: str,
        path: Steps,
        *advice: str,
        key: bool = False,
        word: tuple[int, str] = (0, ""),
    ) -> Diagnostic:
        """Point at a value, its key, or one word in it: `word` is its offset and text."""
        found = self.document.diagnostic(code, message, path, *advice, key=key)
        return _pointed(self.document, found, path, *word) if word[1] else found

    # -- the parts

    def servers(self) -> Iterator[Diagnostic]:
        servers = self.group(("server",))
        for name in servers:
            yield from self.placeholders(("server", name), COMMON_NAMES)
            yield from self.guarded(("server", name))
        for name in self.group(("limits", "requests")):
            if servers and name not in servers:
                yield self.report(
                    "unknown-environment",
                    f"there is no server `{name}`",
                    ("limits", "requests", name),
                    *did_you_mean(name, servers),
                    f"`server` has {listed(servers)}",
                    key=True,
                )

    def budgets(self) -> Iterator[Diagnostic]:
        """A call that has a budget of its own has to be made somewhere."""
        budgets = self.group(("limits", "calls"))
        made = {text for text in _texts(self.document.data) if CALL.fullmatch(text)} if budgets else set()
        for call in budgets:
            if call not in made:
                message = f"no call is written `{call}`"
                advice = (*did_you_mean(call, made), "write it as it stands in its resource")
                yield self.report("unknown-call", message, ("limits", "calls", call), *advice, key=True)

    def guarded(self, path: Steps) -> Iterator[Diagnostic]:
        """What an address is filled with needs a pattern: another host would be handed the credentials."""
        text = self.at(path)
        for found in re.finditer(r"connection\.(\w+)", text) if isinstance(text, str) else ():
            name = found.group(1)
            if name in self.kept() and "pattern" not in self.group(("connection", name)):
                message = f"`{name}` is part of the server's address and has no `pattern`"
                advice = f"for example `connection: {{{name}: {{title: …, pattern: '^[a-z0-9]+$'}}}}`"
                yield self.report("missing-key", message, path, advice, word=(found.start(1), name))

    def auth(self) -> Iterator[Diagnostic]:
        credentials, names = self.credentials(), []
        for path in self.methods():
            for key in ("token", "username", "password"):
                yield from self.credential((*path, key), self.group((*path, "credentials")))
            for key in ("authorize_url", "token_url"):
                yield from self.placeholders((*path, key), COMMON_NAMES | credentials | self.kept())
            yield from self.call((*path, "revoke"), revoke_names(self.at((*path, "revoke"))), {})
            yield from self.shown_secrets(path)
            name = self.at((*path, "name")) or self.at((*path, "type"))
            if name is not None and name in names:
                yield self.report("duplicate-name", f"`{name}` is written twice", (*path, "name"))
            names.append(name)
        yield from self.kept_value(("account",), prefix="")

    def credential(self, path: Steps, credentials: Collection[str]) -> Iterator[Diagnostic]:
        """A path over the credentials must name one; a text with braces has been checked when compiled."""
        steps = _plain_steps(self.at(path))
        if steps and steps[0] not in credentials:
            message = f"there is no credential `{steps[0]}`"
            advice = did_you_mean(str(steps[0]), credentials)
            yield self.report(
                "unknown-credential", message, path, *advice, f"credentials are {listed(credentials)}"
            )

    def shown_secrets(self, path: Steps) -> Iterator[Diagnostic]:
        """A value of `connection` is shown to people, so it can't be a whole secret."""
        bare = WHOLE if self.at((*path, "type")) == "oauth2" else WHOLE_OR_BARE
        for key, written in self.group((*path, "keep")).items():
            found = bare.fullmatch(written or "")
            name = found.group(1) if found else ""
            credential = self.group((*path, "credentials", name))
            if credential and credential.get("secret", True):
                message = f"`keep` would show `{name}`, which is secret"
                part = f"keep a part of it, as in `{{{{ {name} | after_last('-') }}}}`"
                yield self.report(
                    "kept-secret", message, (*path, "keep", key), part, "or write `secret: false`"
                )

    def kept_value(self, path: Steps, prefix: str) -> Iterator[Diagnostic]:
        """A path over `connection` must name a value that some `keep` keeps."""
        steps = _plain_steps(self.at(path))
        if any(self.at((*method, "type")) is None for method in self.methods()):
            return  # What that way to sign keeps cannot be told.
        if steps and prefix:
            steps = steps[1:] if steps[0] == prefix else ()
        if steps and steps[0] not in self.kept():
            message = f"no `keep` keeps a value `{steps[0]}`"
            kept = sorted(self.kept())
            advice = did_you_mean(str(steps[0]), kept)
            known = f"kept when connecting are {listed(kept)}" if kept else "nothing is kept when connecting"
            word = (len(prefix) + 1 if prefix else 0, str(steps[0]))
            yield self.report("unknown-connection-value", message, path, *advice, known, word=word)

    def rules(self) -> Iterator[Diagnostic]:
        kinds = [self.at((*path, "type")) for path in self.methods()]
        refreshes = None in kinds or "oauth2" in kinds
        rules = self.at(("errors", "rules")) or []
        for index, rule in enumerate(rules):
            if rule is None:
                continue
            path: Steps = ("errors", "rules", index)
            if "for" in rule and rule["then"] != "wait":
                message = f"`for` has no effect with `then: {rule['then']}`"
                yield self.report("no-effect", message, (*path, "for"), "write `then: wait`", key=True)
            for key in ("code", "when"):
                if rule.get("json") is False and key in rule:
                    message = f"this rule never fits: without a JSON body, `{key}` has nothing to look at"
                    yield self.report("no-effect", message, (*path, key), key=True)
            for key in ("code", "text"):
                source = "message" if key == "text" else "code"
                if key in rule and source not in self.group(("errors",)):
                    message = f"`{key}` never fits: `errors` does not say where the {source} is"
                    yield self.report(
                        "no-effect", message, (*path, key), f"add `{source}` to `errors`", key=True
                    )
            if rule["then"] == "refresh_credentials" and not refreshes:
                message = "there is nothing to refresh: `auth` is not of type `oauth2`"
                yield self.report("no-effect", message, (*path, "then"), "write `then: reconnect`")
            earlier = next(
                (at for at, other in enumerate(rules[:index]) if other is not None and _covers(other, rule)),
                None,
            )
            if earlier is not None:
                line = self.document.place(("errors", "rules", earlier))[0]
                yield self.report(
                    "unreachable-rule",
                    "this rule never decides: an earlier one fits whenever it does",
                    path,
                    f"the earlier rule is on line {line}; put this one above it, or remove it",
                )

    def calls_outside_resources(self) -> Iterator[Diagnostic]:
        yield from self.call(("check",), COMMON_NAMES, {})
        ways = [self.at((*path, "name")) or self.at((*path, "type")) for path in self.methods()]
        for index, lookup in enumerate(self.at(("after_connecting",)) or []):
            path: Steps = ("after_connecting", index)
            signs = any(name.lower() == "authorization" for name in self.group((*path, "headers")))
            yield from self.call(path, LOOKUP_NAMES if signs else COMMON_NAMES, {})
            for at, way in enumerate((lookup or {}).get("for", ())):
                if way not in ways:
                    message = f"there is no way to sign called `{way}`"
                    known = f"`auth` has {listed([each for each in ways if each])}"
                    advice = (*did_you_mean(way, [each for each in ways if each]), known)
                    yield self.report("unknown-method", message, (*path, "for", at), *advice)

    def renamed(self, path: Steps, name: str, fields: Mapping[str, Any]) -> Iterator[Diagnostic]:
        versions = {version: self.group((*path, version)) for version in self.group(path)}
        earlier = {old for renames in versions.values() for old in renames}
        for version, renames in versions.items():
            for old, new in renames.items():
                if new not in fields and new not in earlier:
                    place = (*path, version, old)
                    yield _unknown_field(self.document, place, name, str(new), fields, path[:-1])

    def resource(self, path: Steps) -> Iterator[Diagnostic]:
        resource = self.group(path)
        fields = self.group((*path, "fields"))
        name = path[-1]
        if not any(key in resource for key in (*READS, *WRITES, *BATCHES)):
            message = f"`{name}` can neither be read nor written"
            yield self.report("missing-operation", message, path, "add `list`, or `create`", key=True)
        yield from _field_problems(self.document, (*path, "fields"), fields)
        for index, field in enumerate(resource.get("immutable") or ()):
            if field not in fields:
                yield _unknown_field(
                    self.document, (*path, "immutable", index), str(name), field, fields, path
                )
        yield from self.renamed((*path, "renamed"), str(name), fields)
        yield from self.needed_operations(path, resource)
        for key in READS:
            yield from self.read((*path, key), fields)
        for key in WRITES:
            names = {"create": CREATE_NAMES, "delete": GONE_NAMES}.get(key, WRITE_NAMES)
            if key == "update" and resource.get("updates") not in (None, "sparse"):
                names = UPDATE_NAMES
            yield from self.write((*path, key), names, fields)
        yield from self.archive((*path, "archive"), resource, fields)
        for key in BATCHES:
            yield from self.batch((*path, key), fields)
        yield from self.versions(path, resource)
        yield from self.find((*path, "find"))
        yield from self.parts((*path, "parts"), fields)
        yield from self.job((*path, "write_job"))

    def needed_operations(self, path: Steps, resource: Mapping[str, Any]) -> Iterator[Diagnostic]:
        def missing(key: str, needs: str, *operations: str) -> Iterator[Diagnostic]:
            if resource.get(key) and not any(operation in resource for operation in operations):
                wanted = " or ".join(f"`{each}`" for each in operations)
                message = f"`{key}` {needs}, and `{path[-1]}` has no {wanted}"
                yield self.report("missing-operation", message, (*path, key), f"add {wanted}", key=True)

        if resource.get("updates") == "whole":
            yield from missing("updates", "reads a record before it replaces it", "get", "get_many")
        if resource.get("updates") == "versioned":
            yield from missing("updates", "reads a record before it changes it", "get", "get_many")
        yield from missing("find", "leads to an update of what is found", "update")
        yield from missing(
            "immutable", "makes a new record for a new value", "create", "create_many", "write_many"
        )
        yield from missing("immutable", "puts the old record out of use", "retire")
        yield from missing("changes", "does not reach back for ever", "list")

    def read(self, path: Steps, fields: Mapping[str, Any]) -> Iterator[Diagnostic]:
        if self.at(path) is None:
            return
        read, kind = self.group(path), str(path[-1])
        loop = self.group((*path, "for_each")).get("as")
        names = (GET_NAMES if kind == "get" else COMMON_NAMES) | ({loop} if loop else set())
        named = dict(self.named(path))
        names |= set(named)
        in_call = list(self.call(path, names, {}))
        yield from in_call
        yield from self.kept_value((*path, "for_each", "in"), prefix="connection")
        # A misspelt `{ide}` has been told of.
        if kind == "get" and not in_call and not self.mentions(path, "id"):
            message = "`get` never uses `id`, so it would always read the same"
            yield self.report("unused-id", message, self.text_of(path), "for example `GET /customers/{id}`")
        for name, at in named.items():
            if name in COMMON_NAMES:
                message = f"`{name}` is something else already"
                yield self.report("wrong-form", message, at, f"choose another name, such as `my_{name}`")
            elif not self.mentions(path, name):
                advice = f"for example `{{{{ {name} }}}}` in `query`"
                yield self.report("unused-name", f"no template of the call uses `{name}`", at, advice)
        yield from self.at_once(path, read, kind)
        if "full_at" in read and (kind != "changes" or "pagination" in read):
            message = "`full_at` is about a feed of changes that has no pages"
            yield self.report("no-effect", message, (*path, "full_at"), key=True)
        for key in ("lookback", "reaches_back"):
            if key in read and self.lacks(path, "since"):
                yield self.report(
                    "no-effect", f"`{key}` has no effect without `since`", (*path, key), key=True
                )
        if "reaches_back" in read and kind == "list":
            message = "`reaches_back` has no effect in `list`, which is what is read instead"
            yield self.report("no-effect", message, (*path, "reaches_back"), key=True)
        for key, severe in (("page_size", True), ("since", False)):
            if key in read and self.lacks(path, "pagination") and "full_at" not in read:
                message = f"`{kind}` has `{key}` and no `pagination`: only the first page would be read"
                found = self.report("missing-pagination", message, (*path, key), "add `pagination`", key=True)
                yield found if severe else replace(found, severity="warning")
                break
        for place in ("since", "until", "ids", ("page_size", "send"), ("pagination", "send")):
            yield from self.no_body_on_get(path, (place,) if isinstance(place, str) else place)

    def at_once(self, path: Steps, read: Mapping[str, Any], kind: str) -> Iterator[Diagnostic]:
        """Look at whether the pages asked for at once can be."""
        if "pages_at_once" not in read:
            return
        type_ = self.group((*path, "pagination")).get("type")
        known = self.group(("limits",)).get("concurrent", 4)
        at = (*path, "pages_at_once")
        advice = f"leave it out; it goes with {listed(FORESEEABLE)}"
        if self.lacks(path, "pagination"):
            yield self.report("no-effect", "`pages_at_once` has no effect without `pagination`", at, key=True)
        elif type_ is not None and type_ not in FORESEEABLE:
            message = f"pages of type `{type_}` can't be asked for at once: each says where the next one is"
            yield self.report("no-effect", message, at, advice, key=True)
        elif type_ == "offset" and self.lacks(path, "page_size"):
            message = (
                "`pages_at_once` needs `page_size`: else nobody knows where the page after the next begins"
            )
            yield self.report("no-effect", message, at, "add `page_size`", key=True)
        elif isinstance(known, int) and read["pages_at_once"] > known:
            message = f"`pages_at_once` is more than the {known} calls that `limits` lets go at once"
            found = self.report("no-effect", message, at, "lower it, or raise `concurrent` in `limits`")
            yield replace(found, severity="warning")

    def named(self, path: Steps) -> Iterator[tuple[str, Steps]]:
        """Walk the names that a read's places give to its templates, and where each is written."""
        for place in ("since", "until", "ids", ("page_size", "send"), ("pagination", "send")):
            at = (*path, *((place,) if isinstance(place, str) else place))
            written = self.at(at)
            if isinstance(written, str) and written.startswith("name "):
                yield written.removeprefix("name ").strip(), at

    def write(self, path: Steps, names: frozenset[str], fields: Mapping[str, Any]) -> Iterator[Diagnostic]:
        if self.at(path) is None:
            return
        write = self.group(path)
        in_call = list(self.call(path, names, fields))
        yield from in_call
        for index in range(len(write.get("then") or ())):
            yield from self.call((*path, "then", index), THEN_NAMES, fields)
        if path[-1] in ("delete", "retire") and not in_call and not self.mentions(path, "id"):
            message = f"`{path[-1]}` never uses `id`, so it cannot tell which record is meant"
            yield self.report(
                "unused-id", message, self.text_of(path), "for example `DELETE /customers/{id}`"
            )
        if path[-1] in ("update", "delete", "retire") and "new" in write:
            message = f"`new` has no effect in `{path[-1]}`, which makes no new record"
            yield self.report("no-effect", message, (*path, "new"), key=True)
        yield from self.no_body_on_get(path, ("record",))
        yield from self.idempotency_key(path)

    def archive(
        self, path: Steps, resource: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> Iterator[Diagnostic]:
        written = self.at(path)
        if written is None:
            return
        values = self.group((*path, "set"))
        for index in range(len(self.group(path).get("if_refused") or ())):
            yield from self.call((*path, "if_refused", index), GONE_NAMES, fields)
        if isinstance(written, str) or "call" in written:
            in_call = list(self.call(path, GONE_NAMES, fields))
            yield from in_call
            if not in_call and not self.mentions(path, "id"):
                message = "`archive` never uses `id`, so it cannot tell which record is meant"
                advice = "for example `POST /customers/{id}/archive`"
                yield self.report("unused-id", message, self.text_of(path), advice)
            if values:
                message = "`set` has no effect beside `call`"
                yield self.report("no-effect", message, (*path, "set"), "keep one of the two", key=True)
        elif not values:
            advice = "for example `set: {active: false}`"
            yield self.report("missing-key", "`archive` needs `call` or `set`", path, advice, key=True)
        elif not any(key in resource for key in ("update", "update_many", "write_many")):
            message = f"`set` is written by an update, and `{path[-2]}` has none"
            yield self.report("missing-operation", message, (*path, "set"), "add `update`", key=True)
        for name in values:
            if not any(name == field or name.startswith(f"{field}.") for field in fields):
                line = self.document.place((*path[:-1], "fields"), key=True)[0]
                known = (*did_you_mean(name, fields), f"fields are declared on line {line}")
                message = f"`{path[-2]}` has no field `{name}`"
                yield self.report("unknown-field", message, (*path, "set", name), *known, key=True)

    def batch(self, path: Steps, fields: Mapping[str, Any]) -> Iterator[Diagnostic]:
        if self.at(path) is None:
            return
        batch = self.group(path)
        yield from self.call(path, CREATE_NAMES, {})
        for key in ("result", "pair_by", "error", "by_key"):
            if key in batch and self.lacks(path, "results"):
                message = f"`{key}` has no effect without `results`"
                yield self.report("no-effect", message, (*path, key), key=True)
        for key in ("error_code", "error_message"):
            if key in batch and self.lacks(path, "error"):
                message = f"`{key}` has no effect without `error`"
                yield self.report("no-effect", message, (*path, key), key=True)
        if "by_key" in batch and "pair_by" in batch:
            message = "`pair_by` has no effect beside `by_key`, which pairs results already"
            yield self.report("no-effect", message, (*path, "pair_by"), key=True)
        if path[-1] == "update_many" and "new" in batch:
            message = "`new` has no effect in `update_many`, which makes no new record"
            yield self.report("no-effect", message, (*path, "new"), key=True)
        yield from self.no_body_on_get(path, ("records",))
        yield from self.idempotency_key(path)
        for name in batch.get("renames") or ():
            if name not in fields:
                place, declared = (*path, "renames", name), path[:-1]
                yield _unknown_field(self.document, place, str(path[-2]), name, fields, declared, key=True)

        if "item" in batch and not self.mentions(path, "record", "item"):
            message = "`item` never uses `record`, so every record would be sent alike"
            yield self.report("unused-name", message, (*path, "item"), "for example `{{ record }}`", key=True)
        if "item" in batch and batch.get("pair_by") != "id":
            yield from self.paired_by((*path, "item"), (*path, "pair_by"))
            yield from self.paired_by((*path, "item"), (*path, "failures", "pair_by"))

    def paired_by(self, path: Steps, place: Steps) -> Iterator[Diagnostic]:
        """What is sent must have something where its result is paired by."""
        sent, written = self.at(path), self.at(place)
        if not isinstance(sent, dict) or not isinstance(written, str):
            return
        for step in _plain_steps(written):
            if isinstance(sent, str):
                return  # A template: what it holds cannot be told.
            if not isinstance(sent, dict) or step not in sent:
                message = f"`{path[-1]}` has nothing at `{written}`, which its result is paired by"
                advice = did_you_mean(str(step), sent) if isinstance(sent, dict) else ()
                yield self.report("missing-key", message, path, *advice, f"add `{written}`", key=True)
                return
            sent = sent[step]

    def versions(self, path: Steps, resource: Mapping[str, Any]) -> Iterator[Diagnostic]:
        """The version a record has must be known where it is sent, and sent where it is wanted."""
        versioned = resource.get("updates") == "versioned"
        if versioned and self.lacks(path, "version"):
            message = "`updates: versioned` needs `version`, which says where a record's version is"
            yield self.report("missing-key", message, (*path, "updates"), "for example `version: version`")
        for key, keys in (("update", _CALL_KEYS), ("update_many", ("item", "body_of_each"))):
            named = self.mentions((*path, key), "version", *keys)
            if versioned and key in resource and not named:
                message = f"`{key}` never sends `version`, so it would change whatever is there"
                yield self.report(
                    "unused-name", message, (*path, key), "for example `{{ version }}`", key=True
                )
            if named and resource.get("updates") in (None, "sparse"):
                message = "`version` is known only where a record is read before it is changed"
                yield self.report("missing-key", message, (*path, key), "add `updates: versioned`", key=True)

    def find(self, path: Steps) -> Iterator[Diagnostic]:
        if self.at(path) is None:
            return
        in_call = list(self.call(path, CREATE_NAMES, {}))
        yield from in_call
        if not in_call and not self.mentions(path, "record"):
            message = "`find` never uses `record`, so it would always find the same"
            advice = "for example `GET /customers?email={record.email}`"
            yield self.report("unused-name", message, self.text_of(path), advice)

    def parts(self, path: Steps, fields: Mapping[str, Any]) -> Iterator[Diagnostic]:
        for name in self.group(path):
            part: Steps = (*path, name)
            if name not in fields:
                yield _unknown_field(self.document, part, str(path[-2]), name, fields, path[:-1], key=True)
            in_call = list(self.call(part, PART_NAMES, fields))
            yield from in_call
            if not in_call and self.at(part) is not None and not self.mentions(part, "value"):
                message = f"the call never uses `value`, so `{name}` would not be written"
                yield self.report("unused-name", message, self.text_of(part), "for example `{{ value }}`")

    def job(self, path: Steps) -> Iterator[Diagnostic]:
        job = self.group(path)
        if not job:
            return
        submit, poll, results = ((*path, key) for key in ("submit", "poll", "results"))
        yield from self.call(submit, COMMON_NAMES, {})
        yield from self.no_body_on_get(submit, ("operations",))
        in_poll = list(self.call(poll, POLL_NAMES, {}))
        yield from in_poll
        if "call" in self.group(poll) and not in_poll and not self.mentions(poll, "job"):
            message = "`poll` never uses `job`, so it cannot tell which job is meant"
            yield self.report("unused-id", message, (*poll, "call"), "for example `GET /batches/{job}`")
        if self.lacks(path, "create") and self.lacks(path, "update"):
            message = "`write_job` says neither what creates a record nor what updates one"
            yield self.report("missing-key", message, path, "add `create` or `update`", key=True)
        for key in ("create", "update"):
            if key in job:
                yield from self.paired_by((*path, key), (*results, "pair_by"))
        if job.get("at_least", 100) > job.get("at_most", 1000):
            message = "no job is ever large enough: `at_least` is more than `at_most`"
            yield self.report("no-effect", message, (*path, "at_least"))
        for key, needs in (("format", "url"), ("body_is", "body")):
            if key in self.group(results) and self.lacks(results, needs):
                message = f"`{key}` has no effect without `{needs}`"
                yield self.report("no-effect", message, (*results, key), f"add `{needs}`", key=True)

    def idempotency_key(self, path: Steps) -> Iterator[Diagnostic]:
        written = self.at((*path, "idempotency_key"))
        if isinstance(written, dict) and "send" not in written and "by_key" not in self.group(path):
            message = "`idempotency_key` needs `send`"
            advice = "for example `send: header Idempotency-Key`"
            yield self.report("missing-key", message, (*path, "idempotency_key"), advice, key=True)

    # -- calls

    def text_of(self, path: Steps) -> Steps:
        """Return the path of a call's text: `call`, or the thing itself."""
        return path if isinstance(self.at(path), str) else (*path, "call")

    def webhooks(self, path: Steps) -> Iterator[Diagnostic]:
        webhooks = self.group(path)
        schemes = [(*path, "signature", index) for index in range(len(webhooks.get("signature") or ()))]
        names: list[Any] = []
        for place in schemes if isinstance(webhooks.get("signature"), list) else [(*path, "signature")]:
            yield from self.scheme(place, names)
        shapes = webhooks.get("shapes")
        for key in ("each", "event") if shapes else ():
            if key in webhooks:
                message = f"`{key}` has no effect beside `shapes`"
                yield self.report("no-effect", message, (*path, key), "write it in a shape", key=True)
        if not shapes and self.lacks(path, "event"):
            message = "nothing says where a delivery tells what happened"
            yield self.report("missing-key", message, path, "add `event: {type: …}`", key=True)
        places = [(*path, "shapes", index) for index in range(len(shapes))] if shapes else [path]
        shared = webhooks.get("address") == "provider"
        written = schemes if isinstance(webhooks.get("signature"), list) else [(*path, "signature")]
        for index in range(len(webhooks.get("probes") or ())):
            yield from self.probe((*path, "probes", index), shared=shared)
        for place in places:
            yield from self.shape(place, whose=shared)
            yield from self.told_by(place, written, shared=shared)
        records = [self.group((*place, "event")).get("record") for place in places]
        for kind in self.group((*path, "events")):
            yield from self.event((*path, "events", kind), recorded=all(records))
        for key, names_known in (("create", SUBSCRIBE_NAMES), ("check", SUBSCRIPTION_NAMES)):
            yield from self.call((*path, "subscription", key), names_known, {})
        for key in ("renew", "delete"):
            yield from self.call((*path, "subscription", key), SUBSCRIPTION_NAMES, {})
        if self.group((*path, "subscription")) and webhooks.get("address") == "provider":
            message = "`subscription` is a connection's own, and `address: provider` has one address for all"
            yield self.report("no-effect", message, (*path, "subscription"), key=True)

    def scheme(self, path: Steps, names: list[Any]) -> Iterator[Diagnostic]:
        """Each scheme has a name of its own, and only keys that its type looks at."""
        scheme = self.group(path)
        kind = scheme.get("type")
        name = scheme.get("name") or kind
        if name is not None and name in names:
            yield self.report("duplicate-name", f"`{name}` is written twice", path, "add `name`")
        names.append(name)
        for key in scheme:
            fitting = SCHEME_KEYS.get(key)
            if fitting and kind is not None and kind not in fitting:
                yield self.report("no-effect", f"`{key}` has no effect for `{kind}`", (*path, key), key=True)
        if kind in SCHEME_KEYS["read"] and self.lacks(path, "read"):
            message = "nothing says where the signature is"
            advice = "for example `read: header X-Signature`"
            yield self.report("missing-key", message, path, advice, key=True)
        timed = "timestamp" in scheme or kind in TOKENS
        if "tolerance" in scheme and not timed:
            message = "`tolerance` has no effect without `timestamp`"
            yield self.report("no-effect", message, (*path, "tolerance"), key=True)
        signs = str(scheme.get("signs", "{{ body }}"))
        if "timestamp" in scheme and kind in SIGNED_TEXT and not _signs_time(scheme):
            message = "the time isn't signed, so anybody could change it"
            yield self.report(
                "unused-name", message, (*path, "timestamp"), "name `timestamp` in `signs`", key=True
            )
        if "form" in scheme and kind in SIGNED_TEXT and "form" not in signs:
            message = "`form` has no effect: `signs` doesn't name it"
            yield self.report(
                "no-effect", message, (*path, "form"), "write `{{ form }}` in `signs`", key=True
            )
        wanted = {"secret_header": "header", "secret_field": "body"}.get(str(kind))
        read = scheme.get("read")
        if wanted and isinstance(read, str) and not read.startswith(f"{wanted} "):
            message = f"`{kind}` reads a {'header' if wanted == 'header' else 'field of the body'}"
            yield self.report("wrong-form", message, (*path, "read"), f"for example `{wanted} token`")

    def probe(self, path: Steps, *, shared: bool) -> Iterator[Diagnostic]:
        """A probe that nothing proves mustn't answer every delivery; what proves nothing changes nothing."""
        probe = self.group(path)
        posted = probe.get("method", "POST") == "POST"
        if probe.get("unsigned") and not posted:
            message = "`unsigned` has no effect: a probe by GET or HEAD is never signed"
            yield self.report("no-effect", message, (*path, "unsigned"), key=True)
        elif probe.get("unsigned") and not {"when", "keep"} & probe.keys():
            message = "every delivery would be this probe: it isn't signed, and nothing tells it from others"
            yield self.report("missing-key", message, path, "add `when`", key=True)
        if "keep" in probe and shared:
            message = "`keep` is for a connection's own address, and all connections share this one"
            yield self.report("no-effect", message, (*path, "keep"), key=True)
        if "visit" in probe and probe.get("unsigned"):
            message = "an address is only called for a probe that is signed"
            yield self.report("no-effect", message, (*path, "visit"), "leave `unsigned` out", key=True)
        if "sign" in probe and "signature" not in str(probe.get("reply")):
            message = "`sign` has no effect: `reply` doesn't name `signature`"
            yield self.report("no-effect", message, (*path, "sign"), key=True)

    def told_by(self, shape: Steps, schemes: Sequence[Steps], *, shared: bool) -> Iterator[Diagnostic]:
        """What tells one event from another, and whose it is, has to be of what is signed.

        Else whoever has seen one delivery could send it again and again as other ones, or to others.
        """
        signing = [each for each in map(self.group, schemes) if _signs_something(each)]
        for key in ("id", "account") if shared else ("id",):
            path = (*shape, "event", key)
            text = self.at(path)
            if text is None and key == "id":
                text, path = "", (*shape, "event")
            for scheme in signing if isinstance(text, str) else ():
                loose = _unsigned(text, scheme, self.group((*shape, "each")))
                if loose:
                    message = f"{loose} isn't signed, and `{key}` is made of it"
                    advice = (
                        f"leave `{key}` out: it is then made from the body"
                        if key == "id" and text and _signs_body(scheme)
                        else "take it from what `signs` names"
                    )
                    yield self.report("unsigned-value", message, path, advice, key=not text)
                    break

    def shape(self, path: Steps, *, whose: bool) -> Iterator[Diagnostic]:
        """What `each` names has to be used, and a shared address has to say whose an event is."""
        event = self.group((*path, "event"))
        if whose and event and self.lacks((*path, "event"), "account"):
            message = "nothing says whose an event is, and all connections share the address"
            advice = "add `account`, or `address: connection`"
            yield self.report("missing-key", message, (*path, "event"), advice, key=True)
        if whose and self.lacks((), "account"):
            message = (
                "`webhooks` finds a connection by its account, and the connector doesn't say what that is"
            )
            yield self.report(
                "missing-key", message, ("webhooks", "address"), "add `account` to the connector"
            )

    def event(self, path: Steps, *, recorded: bool) -> Iterator[Diagnostic]:
        """An event asks for one thing, of a resource that can do it."""
        action = self.group(path)
        asked = [key for key in ("pull", "unlink", "changes", "disconnect", "ignore") if key in action]
        if len(asked) > 1:
            message = f"an event asks for one thing, and this one for {listed(asked)}"
            yield self.report("wrong-form", message, path, key=True)
        resources = self.group(("resources",))
        for key in asked:
            name = action[key]
            if key in ("disconnect", "ignore") or not isinstance(name, str):
                continue
            if name not in resources:
                advice = (*did_you_mean(name, resources), f"resources are {listed(resources)}")
                yield self.report("unknown-resource", f"there is no resource `{name}`", (*path, key), *advice)
                continue
            resource = resources[name] or {}
            readers = {"pull": ("get", "get_many"), "changes": ("changes", "list")}.get(key, ())
            if readers and not any(reader in resource for reader in readers):
                wanted = " or ".join(f"`{each}`" for each in readers)
                message = f"`{name}` can't be read like this: it has no {wanted}"
                yield self.report("missing-operation", message, (*path, key), f"add {wanted}")
            if key in ("pull", "unlink") and not recorded and self.lacks(path, "id"):
                message = "nothing says which record the event is about"
                yield self.report("missing-key", message, path, "add `id`, or `record` to `event`", key=True)
        if "id" in action and not {"pull", "unlink"} & set(asked):
            yield self.report("no-effect", "`id` has no effect here", (*path, "id"), key=True)

    def call(self, path: Steps, names: Collection[str], fields: Mapping[str, Any]) -> Iterator[Diagnostic]:
        if self.at(path) is None:
            return
        names = {*names, *self.group((*path, "with"))}
        yield from self.placeholders(self.text_of(path), names, fields)
        text = self.at(self.text_of(path))
        if isinstance(text, str) and text.startswith("GET ") and "body" in self.group(path):
            message = "a GET has no body"
            yield self.report(
                "body-on-get", message, (*path, "body"), "use `query`, or another method", key=True
            )

    def placeholders(
        self, path: Steps, names: Collection[str], fields: Mapping[str, Any] | None = None
    ) -> Iterator[Diagnostic]:
        """Each `{name}` of a text must be known: a name of the place, or a field of the record written."""
        text = self.at(path)
        for found in PLACEHOLDER.finditer(text) if isinstance(text, str) else ():
            name = found.group(1).strip()
            try:
                steps = Path.parse(name).steps
            except ExpressionError as error:
                message = f"`{{{name}}}` is not a name: {error.message}"
                yield self.report("bad-path", message, path, word=(found.start(), found.group()))
                continue
            head, rest = steps[0], steps[1:]
            if head in names:
                choices = {"connection": self.kept(), "credentials": self.credentials()}.get(str(head))
                if choices is None or not rest or rest[0] in choices:
                    continue
                name, known = str(rest[0]), sorted(choices)
            elif fields and (name in fields or any(field.split(".")[0] == head for field in fields)):
                continue
            else:
                known = [*sorted(names), *(fields or ())]
            message = f"nothing called `{name}` is known here"
            advice = (
                *did_you_mean(name, known),
                f"known here are {listed(known)}" if known else "nothing is",
            )
            word = (found.start() + found.group().index(name), name)
            yield self.report("unknown-placeholder", message, path, *advice, word=word)

    def mentions(self, path: Steps, name: str, *keys: str) -> bool:
        """Whether a call uses a name, in its text or in a template; with `keys`, in these only."""
        written = self.at(path)
        looked_at = [self.group(path).get(key) for key in keys or _CALL_KEYS]
        parts = [written] if isinstance(written, str) else looked_at
        return any(re.search(rf"\{{[^{{}}]*\b{name}\b", text) for part in parts for text in _texts(part))

    def no_body_on_get(self, path: Steps, place: tuple[str, ...]) -> Iterator[Diagnostic]:
        text, written = self.at(self.text_of(path)), self.at((*path, *place))
        if not isinstance(text, str) or not text.startswith("GET ") or not isinstance(written, str):
            return
        if written.split(" ")[0] == "body":
            advice = "use a place such as `query limit`, or another method"
            yield self.report("body-on-get", "a GET has no body", (*path, *place), advice)


def _pointed(document: Document, found: Diagnostic, path: Steps, offset: int, word: str) -> Diagnostic:
    """Return a diagnostic that points at one word of the value at a path, where its place can be told."""
    line, column, length = document.within(path, offset)
    return replace(found, line=line, column=column, length=len(word) if length == 1 else length)


_CALL_KEYS = ("call", "query", "headers", "with", "body")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _plain_steps(text: Any) -> Steps:
    """Return the steps of a text that is a plain path, else nothing."""
    if not isinstance(text, str):
        return ()
    try:
        return Expression.compile(text).steps or ()
    except ExpressionError:
        return ()


def _covers(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    """Whether an error rule fits every answer that a later one fits."""

    def codes(rule: Mapping[str, Any]) -> set[str]:
        code = rule["code"]
        return {code} if isinstance(code, str) else set(code)

    def status(rule: Mapping[str, Any]) -> set[int]:
        return {each for low, high in parse_statuses(rule["status"]) for each in range(low, high + 1)}

    def narrower(key: str) -> bool:
        if key not in earlier:
            return True
        if key not in later:
            return False
        if key == "status":
            return status(later) <= status(earlier)
        if key == "code":
            return codes(later) <= codes(earlier)
        if key == "text":
            return str(earlier[key]).lower() in str(later[key]).lower()
        return bool(earlier[key] == later[key])

    return all(narrower(key) for key in ("status", "code", "text", "header", "when", "json"))


# ---- fields ------------------------------------------------------------------------------------------


def _field_problems(document: Document, path: Steps, written: Mapping[str, Any]) -> Iterator[Diagnostic]:
    fields = {name: each for name, each in written.items() if each is not None}
    kinds = {
        name: each if isinstance(each, str) else each.get("type", "text") for name, each in fields.items()
    }
    for name, field in fields.items():
        outer = next((other for other in fields if name.startswith((f"{other}.", f"{other}["))), None)
        if outer and kinds[outer] not in ("object", "list", "any"):
            message = f"`{name}` lies within `{outer}`, which is {kinds[outer]}"
            line = document.place((*path, outer), key=True)[0]
            advice = f"`{outer}` is declared on line {line}; leave one of the two out"
            yield document.diagnostic("field-conflict", message, (*path, name), advice, key=True)
        if isinstance(field, dict):
            yield from _field_options(document, (*path, name), field)


def _field_options(document: Document, path: Steps, field: Mapping[str, Any]) -> Iterator[Diagnostic]:
    kind = field.get("type", "text")
    clashes = (
        (
            field.get("read_only") and field.get("required"),
            "required",
            "`required` has no effect on a `read_only` field",
        ),
        (
            field.get("read_only") and "only_on" in field,
            "only_on",
            "`only_on` has no effect on a `read_only` field",
        ),
        (
            field.get("read_only") and "sent" in field,
            "sent",
            "`sent` has no effect on a `read_only` field",
        ),
        (
            "at_most" in field and kind not in LENGTHY,
            "at_most",
            f"`at_most` has no effect on {kind}, which has no length",
        ),
        (
            "too_long" in field and "at_most" not in field,
            "too_long",
            "`too_long` has no effect without `at_most`",
        ),
        (
            "one_of" in field and kind not in ("text", "any"),
            "one_of",
            f"`one_of` lists texts, and the field is {kind}",
        ),
        ("unit" in field and kind != "money", "unit", f"`unit` has no effect on {kind}, which is not money"),
        (
            "currency" in field and kind != "money",
            "currency",
            f"`currency` has no effect on {kind}, which is not money",
        ),
    )
    for wrong, key, message in clashes:
        if wrong:
            yield document.diagnostic("no-effect", message, (*path, key), key=True)


def _unknown_field(
    document: Document,
    path: Steps,
    owner: str,
    field: str,
    known: Iterable[str],
    declared: Steps,
    *,
    key: bool = False,
) -> Diagnostic:
    line = document.place((*declared, "fields"), key=True)[0]
    advice = (*did_you_mean(field, known), f"fields are declared on line {line}")
    return document.diagnostic("unknown-field", f"`{owner}` has no field `{field}`", path, *advice, key=key)


# ---- platforms ---------------------------------------------------------------------------------------


def _platform_problems(document: Document) -> Iterator[Diagnostic]:
    for name, entity in (document.data.get("entities") or {}).items():
        if entity is None:
            continue
        path: Steps = ("entities", name)
        if "table" not in entity and "query" not in entity:
            advice = "for example `table: platform.customers`"
            yield document.diagnostic(
                "missing-key", f"`{name}` needs `table` or `query`", path, advice, key=True
            )
        if "table" in entity and "query" in entity:
            message = "`query` has no effect beside `table`"
            yield document.diagnostic("no-effect", message, (*path, "query"), "keep one of the two", key=True)
        if "defaults" in entity and "table" not in entity:
            message = "`defaults` has no effect: an entity read by a query is never written"
            yield document.diagnostic("no-effect", message, (*path, "defaults"), key=True)
        query = entity.get("query")
        if isinstance(query, str) and not query.lstrip().lower().startswith(("select ", "select\n", "with ")):
            message = "`query` must be a SELECT"
            yield document.diagnostic("wrong-form", message, (*path, "query"))
        fields = entity.get("fields") or {}
        yield from _field_problems(document, (*path, "fields"), fields)
        deleted = entity.get("deleted")
        first = _plain_steps(deleted)[:1]
        named = [found[1] for found in MEMBER.findall(QUOTED.sub("", str(deleted)))] if deleted else []
        for field in [*map(str, first), *named]:
            if field != "id" and not any(field == _head(known) for known in fields):
                yield _unknown_field(document, (*path, "deleted"), str(name), field, fields, path)
        for field, written in fields.items():
            here = (*path, "fields", field)
            if written == "money" or (isinstance(written, dict) and written.get("type") == "money"):
                yield from _money(document, here, str(name), written, fields)


def _money(
    document: Document, path: Steps, entity: str, written: Any, fields: Mapping[str, Any]
) -> Iterator[Diagnostic]:
    options = written if isinstance(written, dict) else {}
    currency = options.get("currency")
    if currency is None:
        message = "money needs to say which field holds its `currency`"
        advice = "for example {type: money, unit: major, currency: currency}"
        yield document.diagnostic("missing-key", message, path, advice, key=True)
    elif currency not in fields:
        yield _unknown_field(document, (*path, "currency"), entity, currency, fields, path[:-2])


# ---- mapping templates -------------------------------------------------------------------------------


def _template_problems(document: Document, connector: Connector, platform: Platform) -> Iterator[Diagnostic]:
    seen: dict[tuple[str, str], int] = {}
    for index, mapping in enumerate(document.data.get("mappings") or ()):
        if mapping is None:
            continue
        path: Steps = ("mappings", index)
        pair = (mapping["entity"], mapping["resource"])
        if pair in seen:
            message = f"`{pair[0]}` is already paired with `{pair[1]}`"
            first = f"the first is on line {seen[pair]}"
            yield document.diagnostic("duplicate-mapping", message, path, first)
        seen.setdefault(pair, document.place(path)[0])
        entity, resource = platform.entities.get(pair[0]), connector.resources.get(pair[1])
        yield from _MappingCheck(document, path, mapping, connector, platform, entity, resource).problems()


@dataclass(frozen=True, slots=True)
class _MappingCheck:
    """One mapping of a template, its shape right."""

    document: Document
    path: Steps
    mapping: Mapping[str, Any]
    connector: Connector
    platform: Platform
    entity: Entity | None
    resource: Resource | None

    def problems(self) -> Iterator[Diagnostic]:
        """Names that do not resolve to an entity or resource are told by `check_template`."""
        yield from self.direction()
        yield from self.conditions()
        yield from self.gone()
        sent: set[str] = set()
        for name, at, rule in self.rules():
            pushes, _ = self.ways(rule)
            yield from self.local(name, at, rule)
            yield from self.remote(rule, at)
            yield from self.words(name, rule["path"], rule, at)
            yield from self.one_way(rule, at)
            yield from self.names_within((*at, "push"), rule.get("push"), ours=True)
            yield from self.names_within((*at, "pull"), rule.get("pull"), ours=False)
            yield from self.rule_conditions(rule, at)
            yield from self.items(rule, at)
            sent |= {rule["path"], *_paths_of_items(rule)} if pushes else set()
        for name, at, rule in self.rules():
            yield from self.decides(name, at, rule, sent)
        yield from self.required(sent)

    @property
    def pushes(self) -> bool:
        return bool(self.mapping["direction"] != "pull")

    @property
    def pulls(self) -> bool:
        return bool(self.mapping["direction"] != "push")

    def rules(self) -> Iterator[tuple[str, Steps, Mapping[str, Any]]]:
        """Walk (our field, place, rule as keys) over all rules; a bare path is `{path: …}`."""
        for name, written in self.mapping["fields"].items():
            several = isinstance(written, list)
            for index, each in enumerate(written if several else [written]):
                at: Steps = (*self.path, "fields", name, *((index,) if several else ()))
                yield name, at, {"path": each} if isinstance(each, str) else each

    def direction(self) -> Iterator[Diagnostic]:
        resource, at = self.resource, (*self.path, "direction")
        if resource is not None:
            declared = f"`{resource.name}` is declared in {self.connector.file}:{resource.line}"
            creates = resource.create or resource.create_many or resource.write_many
            updates = resource.update or resource.update_many or resource.write_many or resource.immutable
            if self.pushes and not creates:
                message = f"nothing can be pushed to `{resource.name}`: it has no `create` or `write_many`"
                advice = ("write `direction: pull`", declared)
                yield self.document.diagnostic("missing-operation", message, at, *advice)
            elif self.pushes and not updates:
                message = f"`{resource.name}` has no `update`, so a changed record could not be pushed again"
                yield self.document.diagnostic("missing-operation", message, at, declared)
            if self.pulls and not (resource.list or resource.changes):
                message = f"nothing can be pulled from `{resource.name}`: it has no `list`"
                advice = ("write `direction: push`", declared)
                yield self.document.diagnostic("missing-operation", message, at, *advice)
        if self.pulls and self.entity is not None and self.entity.query is not None:
            message = f"`{self.entity.name}` is read by a query, so nothing can be pulled into it"
            declared = f"it is declared in {self.platform.file}:{self.entity.line}"
            yield self.document.diagnostic("missing-operation", message, at, declared)

    def ways(self, rule: Mapping[str, Any]) -> tuple[bool, bool]:
        """Return whether a rule pushes, and whether it pulls: a line for one way makes it one-way."""
        one_way = "push" in rule or "pull" in rule or "each" in rule
        return (
            self.pushes and ("push" in rule or "each" in rule or not one_way),
            self.pulls and ("pull" in rule or not one_way),
        )

    def local(self, name: str, at: Steps, rule: Mapping[str, Any]) -> Iterator[Diagnostic]:
        """Our field must exist, unless the rule sends something that does not come from it."""
        if self.entity is None or name == "id" or made_up(rule):
            return
        place = at[: len(self.path) + 2]
        field = self.entity.fields.get(name)
        if field is None:
            message = f"{self.platform.name} `{self.entity.name}` has no field `{name}`"
            yield self.document.diagnostic(
                "unknown-field", message, place, *self.ours(name, self.entity), key=True
            )
        elif field.read_only and self.ways(rule)[1]:
            message = f"`{name}` is read-only on the platform, so it cannot be pulled"
            advice = 'give the rule a `push` and no `pull`, such as `push: "{{ value }}"`'
            yield self.document.diagnostic("read-only", message, place, advice, key=True)

    def remote(self, rule: Mapping[str, Any], at: Steps) -> Iterator[Diagnostic]:
        """Their field must exist, and take what is sent."""
        path, resource = rule["path"], self.resource
        if resource is None or not _is_path(path) or "each" in rule:
            return
        place = (*at, "path") if isinstance(self.document.value(at), dict) else at
        field = declared_field(resource.fields, path)
        if field is None and path != resource.id.text:
            message = f"{self.connector.name} `{resource.name}` has no field `{path}`"
            yield self.document.diagnostic("unknown-field", message, place, *self.theirs(path, resource))
        elif field is not None and field.read_only and self.ways(rule)[0]:
            message = f"`{path}` is read-only at {self.connector.name}, so it cannot be pushed"
            advice = self.theirs(path, resource)
            if self.pulls:
                advice = ('give the rule a `pull` and no `push`, such as `pull: "{{ value }}"`', *advice)
            yield self.document.diagnostic("read-only", message, place, *advice)

    def words(self, name: str | None, path: str, rule: Mapping[str, Any], at: Steps) -> Iterator[Diagnostic]:
        """A table and defaults must name values that the fields of both sides can have. An item of a list has
        no field of ours, so no `name`.
        """
        table: Mapping[str, Any] = rule.get("values") or {}
        theirs = self.resource.fields.get(path) if self.resource is not None else None
        if self.resource is not None and theirs is not None and theirs.one_of:
            of = f"`{path}` of {self.connector.name} `{self.mapping['resource']}`"
            said = [((*at, "values", key), each, False) for key, each in table.items()]
            said += [((*at, "default"), rule["default"], False)] if "default" in rule else []
            declared = f"{self.connector.file}:{self.resource.line}"
            yield from self.known_words(said, theirs.one_of, of, declared)
        ours = self.entity.fields.get(name) if self.entity is not None and name is not None else None
        choices = ours.one_of or (("true", "false") if ours.type == "boolean" else ()) if ours else ()
        if self.entity is not None and choices:
            of = f"`{name}` of {self.platform.name} `{self.mapping['entity']}`"
            said = [((*at, "values", key), key, True) for key in table]
            if "pull_default" in rule and ours is not None and ours.one_of:
                said.append(((*at, "pull_default"), rule["pull_default"], False))
            yield from self.known_words(said, choices, of, f"{self.platform.file}:{self.entity.line}")

    def known_words(
        self, said: Iterable[tuple[Steps, Any, bool]], choices: Sequence[str], of: str, declared: str
    ) -> Iterator[Diagnostic]:
        for place, word, key in said:
            if word is not None and word not in choices:
                shown = f"`{word}`" if isinstance(word, str) else f"{word!r}"
                near = did_you_mean(word, choices) if isinstance(word, str) else ()
                advice = (*near, f"it takes {listed(choices)}", f"fields are declared in {declared}")
                message = f"{of} is never {shown}"
                yield self.document.diagnostic("unknown-value", message, place, *advice, key=key)

    def items(self, rule: Mapping[str, Any], at: Steps) -> Iterator[Diagnostic]:
        """What is said of the items of a list: their fields must exist, and what braces name."""
        for key in ("pull", "only_pull_when", "link", "optional"):
            if "each" in rule and key in rule:
                message = f"`{key}` has no effect beside `each`, which pushes the items of a list"
                yield self.document.diagnostic("no-effect", message, (*at, key), key=True)
        if "each_is" in rule and "each" not in rule:
            message = "`each_is` has no effect without `each`"
            yield self.document.diagnostic("no-effect", message, (*at, "each_is"), key=True)
        for name, written in rule.get("each", {}).items():
            place = (*at, "each", name)
            item = {"path": written} if isinstance(written, str) else written
            path = {"path": f"{rule['path']}[0].{item['path']}", "push": "{{ value }}"}
            if "each" in item:
                yield from self.items(path | {"each": item["each"]}, place)
            else:
                yield from self.remote(path, place)
                yield from self.words(None, path["path"], item, place)
            yield from self.names_within((*place, "push"), item.get("push"), ours=True)

    def ours(self, name: str, entity: Entity) -> tuple[str, ...]:
        declared = f"fields are declared in {self.platform.file}:{entity.line}"
        return (*did_you_mean(name, entity.fields), declared)

    def theirs(self, name: str, resource: Resource) -> tuple[str, ...]:
        declared = f"fields are declared in {self.connector.file}:{resource.line}"
        return (*did_you_mean(name, resource.fields), declared)

    def names_within(self, at: Steps, text: Any, *, ours: bool) -> Iterator[Diagnostic]:
        """`record.x` and `venue.x` in braces must be fields: of our record on a push, of theirs on a pull."""
        if not isinstance(text, str) or not has_braces(text):
            return
        venue = self.platform.entities.get("venue")
        # Text in quotes is blanked out, so that offsets stay.
        for found in MEMBER.finditer(QUOTED.sub(lambda quoted: " " * len(quoted.group()), text)):
            owner, name = found.groups()
            if owner == "venue":
                wrong = venue is not None and name != "id" and name not in venue.fields
                message, advice = f"the venue has no field `{name}`", self.ours(name, venue) if venue else ()
            elif ours:
                wrong = self.entity is not None and name != "id" and name not in self.entity.fields
                message = f"{self.platform.name} `{self.mapping['entity']}` has no field `{name}`"
                advice = self.ours(name, self.entity) if self.entity else ()
            else:
                known = (
                    {_head(field) for field in (*self.resource.fields, self.resource.id.text)}
                    if self.resource
                    else ()
                )
                wrong = self.resource is not None and name not in known
                message = f"{self.connector.name} `{self.mapping['resource']}` has no field `{name}`"
                advice = self.theirs(name, self.resource) if self.resource else ()
            if wrong:
                said = self.document.diagnostic("unknown-field", message, at, *advice)
                yield _pointed(self.document, said, at, found.start(2), name)

    def one_way(self, rule: Mapping[str, Any], at: Steps) -> Iterator[Diagnostic]:
        if "optional" in rule and "link" not in rule:
            message = "`optional` has no effect without `link`"
            yield self.document.diagnostic("no-effect", message, (*at, "optional"), key=True)
        for key, goes in (("push", self.pushes), ("pull", self.pulls)):
            if key in rule and not goes:
                message = f"`{key}` has no effect in a mapping with `direction: {self.mapping['direction']}`"
                yield self.document.diagnostic("no-effect", message, (*at, key), key=True)
            if key in rule and "link" in rule and rule[key] != COPY:
                message = (
                    f"`{key}` has no effect beside `link`, which translates the id: only `{COPY}` has, and "
                    "says that it goes this way alone"
                )
                yield self.document.diagnostic("no-effect", message, (*at, key), key=True)

    def rule_conditions(self, rule: Mapping[str, Any], at: Steps) -> Iterator[Diagnostic]:
        for key, goes in zip(("only_when", "only_pull_when"), self.ways(rule), strict=True):
            if key in rule and not goes:
                message = (
                    f"`{key}` has no effect on a rule that never {'pulls' if 'pull' in key else 'pushes'}"
                )
                yield self.document.diagnostic("no-effect", message, (*at, key), key=True)
            yield from self.names_within((*at, key), rule.get(key), ours=key == "only_when")

    def decides(
        self, name: str, at: Steps, rule: Mapping[str, Any], sent: Collection[str]
    ) -> Iterator[Diagnostic]:
        """Only a field that goes both ways can have been changed on both sides."""
        key = "when_both_changed"
        if key not in rule or (self.pushes and self.ways(rule)[1] and rule["path"] in sent):
            return
        if not (self.pushes and self.pulls):
            direction = self.mapping["direction"]
            message = f"`{key}` has no effect in a mapping with `direction: {direction}`"
            advice = "leave it out, or write `direction: bidirectional`"
        elif self.ways(rule)[1]:
            message = f"`{key}` has no effect: `{name}` is pulled from `{rule['path']}`, which no rule pushes"
            advice = 'leave it out, or give the rule a `push` as well, such as `push: "{{ value }}"`'
        else:
            message = f"`{key}` has no effect on a rule that never pulls"
            other = any(field == name and self.ways(each)[1] for field, _, each in self.rules())
            advice = (
                f"write it under the rule of `{name}` that pulls"
                if other
                else 'leave it out, or give the rule a `pull` as well, such as `pull: "{{ value }}"`'
            )
        yield self.document.diagnostic("no-effect", message, (*at, key), advice, key=True)

    def required(self, sent: Collection[str]) -> Iterator[Diagnostic]:
        """A new record must get every field it cannot do without: by a rule, or by `new`."""
        if self.resource is None or not self.pushes:
            return
        for field in unsent_fields(self.resource, sent):
            owner = f"{self.connector.name} `{self.resource.name}`"
            message = f"{owner} needs `{field.path}`, and no rule pushes it"
            declared = f"fields are declared in {self.connector.file}:{self.resource.line}"
            place = (*self.path, "fields")
            yield self.document.diagnostic("required-field", message, place, declared, key=True)

    def gone(self) -> Iterator[Diagnostic]:
        """What is to be done to a record must be something its resource knows, and the mapping comes to."""
        mapping, resource = self.mapping, self.resource
        ours, unwanted, theirs = "when_ours_is_gone", "when_no_longer_wanted", "when_theirs_is_gone"
        for key, goes in ((ours, self.pushes), (unwanted, self.pushes), (theirs, self.pulls)):
            if key in mapping and not goes:
                message = f"`{key}` has no effect in a mapping with `direction: {mapping['direction']}`"
                yield self.document.diagnostic("no-effect", message, (*self.path, key), key=True)
        if unwanted in mapping and "only_when" not in mapping:
            message = f"`{unwanted}` has no effect without `only_when`"
            yield self.document.diagnostic("no-effect", message, (*self.path, unwanted), key=True)
        for key in (ours, unwanted):
            rule = mapping.get(key, "keep")
            if resource is not None and rule != "keep" and getattr(resource, rule) is None:
                message = f"`{resource.name}` has no `{rule}`"
                declared = f"it is declared in {self.connector.file}:{resource.line}"
                place = (*self.path, key)
                yield self.document.diagnostic("missing-operation", message, place, declared)

    def conditions(self) -> Iterator[Diagnostic]:
        for key, goes in (("only_when", self.pushes), ("only_pull_when", self.pulls)):
            if key in self.mapping and not goes:
                message = f"`{key}` has no effect in a mapping with `direction: {self.mapping['direction']}`"
                yield self.document.diagnostic("no-effect", message, (*self.path, key), key=True)
            yield from self.names_within((*self.path, key), self.mapping.get(key), ours=key == "only_when")
        if "when_both_changed" in self.mapping and self.mapping["direction"] != "bidirectional":
            message = "`when_both_changed` has no effect in a mapping that goes one way"
            yield self.document.diagnostic("no-effect", message, (*self.path, "when_both_changed"), key=True)


def _paths_of_items(rule: Mapping[str, Any]) -> Iterator[str]:
    for written in rule.get("each", {}).values():
        item = {"path": written} if isinstance(written, str) else written
        path = f"{rule['path']}[0].{item['path']}"
        yield from _paths_of_items({**item, "path": path}) if "each" in item else [path]


def made_up(rule: Mapping[str, Any]) -> bool:
    """Whether a rule only sends, and sends something else than the field it is written under."""
    if "push" not in rule or "pull" in rule:
        return False
    try:
        return "value" not in Expression.compile(rule["push"]).names
    except ExpressionError:
        return True  # What is wrong with it is said elsewhere.


def _is_path(text: str) -> bool:
    try:
        Path.parse(text)
    except ExpressionError:
        return False
    return True


def _head(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0]


# ---- what a signature covers -------------------------------------------------------------------------


def _signs_something(scheme: Mapping[str, Any]) -> bool:
    if scheme.get("type") not in SIGNED_TEXT | TOKENS:
        return False
    try:
        SignedText.compile(str(scheme.get("signs", "{{ body }}")))
    except ExpressionError:  # which is told of already
        return False
    return True


def _signed_text(scheme: Mapping[str, Any]) -> str:
    """Return all that a scheme says of what is signed; a token says what of a delivery it is about."""
    kind, required = scheme.get("type"), str(scheme.get("requires", ""))
    signs = "" if kind == "jwt" else scheme.get("signs", "{{ body }}")
    return f"{signs}{required}"


def _signs_body(scheme: Mapping[str, Any]) -> bool:
    """Whether all of the body is signed, or only fields of it."""
    form = scheme.get("form")
    of = form.get("of", "body") if isinstance(form, dict) else "body"
    text = QUOTED.sub("", _signed_text(scheme))
    return bool(re.search(r"\bbody\b", text)) or ("form" in text and of != "address")


def _signs_address(scheme: Mapping[str, Any]) -> bool:
    form = scheme.get("form")
    text = QUOTED.sub("", _signed_text(scheme))
    of_address = isinstance(form, dict) and form.get("of") == "address" and "form" in text
    return of_address or bool(re.search(r"\b(url|query|parameters)\b", text))


def _signed_headers(scheme: Mapping[str, Any]) -> set[str]:
    text = _signed_text(scheme)
    found = {next(filter(None, each)).lower() for each in NAMED_HEADER.findall(text)}
    timestamp = scheme.get("timestamp")
    if isinstance(timestamp, dict) and re.search(r"\btimestamp\b", text):
        found.add(str(timestamp.get("read", "")).removeprefix("header ").lower())
    return found


def _signs_time(scheme: Mapping[str, Any]) -> bool:
    text = _signed_text(scheme)
    read = str(scheme["timestamp"].get("read", ""))
    where, _, name = read.partition(" ")
    if re.search(r"\btimestamp\b", QUOTED.sub("", text)):
        return True
    if has_braces(read):
        found = {next(filter(None, each)).lower() for each in NAMED_HEADER.findall(read)}
        return bool(found) and found <= _signed_headers(scheme)
    if where == "body":
        return _signs_body(scheme) or f"payload.{name}" in text
    if where == "query":
        return _signs_address(scheme)
    return name.lower() in _signed_headers(scheme)


def _unsigned(text: str, scheme: Mapping[str, Any], each: Mapping[str, Any]) -> str:
    """Return what an event's value takes from a delivery though the scheme doesn't sign it, in words."""
    signed = _signed_text(scheme)
    if text.startswith("header "):
        name = text.removeprefix("header ")
        return "" if name.lower() in _signed_headers(scheme) else f"the header `{name}`"
    for found in NAMED_HEADER.findall(text):
        name = next(filter(None, found))
        if name.lower() not in _signed_headers(scheme):
            return f"the header `{name}`"
    plain_text = FILTER_NAME.sub("", QUOTED.sub("''", text))
    names = [name for name in FIELD_PATH.findall(plain_text) if name not in NO_FIELDS]
    in_address = any(re.match(r"query\b", name) for name in names)
    if in_address and not _signs_address(scheme):
        return "the address"
    if scheme.get("type") == "jwt" or _signs_body(scheme):  # a token alone leaves no choice
        return ""
    if not text:
        return "the body as a whole"
    fields = {
        name.removeprefix(".").replace("['", ".").replace("']", "") for name in NAMED_FIELD.findall(signed)
    }
    for name in names:
        plain = re.sub(r"^(body|payload)\.", "", name)
        head = re.split(r"[.\[]", plain, maxsplit=1)[0]
        if head in each or (head not in ("headers", "query") and plain not in fields):
            return f"the field `{plain}`"
    return ""
