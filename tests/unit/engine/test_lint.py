"""What lint finds beyond the planted faults: whole files, combinations, any input at all."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.documents import Document, read_document
from engine.lint import lint_connector, lint_file, lint_platform, lint_template
from engine.manifest import (
    Connector,
    Platform,
    check_connector,
    check_platform,
    compile_connector,
    compile_platform,
)

ROOT = Path(__file__).parents[3]
RIGHT = ROOT / "tests" / "snapshot" / "diagnostics"
CONNECTOR = (RIGHT / "connectors" / "juniper.yaml").read_text("utf-8")
PLATFORM = (RIGHT / "connectors" / "platform.yaml").read_text("utf-8")
TEMPLATE = (RIGHT / "right" / "music-venue.yaml").read_text("utf-8")


def read(text: str) -> Document:
    return read_document(text, file="f.yaml")


def codes(text: str) -> list[tuple[str, int]]:
    return [(each.code, each.line) for each in lint_connector(read(text))]


@pytest.fixture(scope="module")
def connector() -> Connector:
    return compile_connector(read_document(CONNECTOR, file="connectors/juniper.yaml"))


@pytest.fixture(scope="module")
def platform() -> Platform:
    return compile_platform(read_document(PLATFORM, file="connectors/platform.yaml"))


@pytest.mark.parametrize(
    "file",
    sorted([*(ROOT / "connectors").glob("*.yaml"), *(ROOT / "mapping-templates").glob("*/*.yaml")]),
    ids=lambda file: f"{file.parent.name}/{file.name}",
)
def test_every_file_of_the_project_is_clean(file: Path) -> None:
    assert lint_file(file) == []


def test_faults_of_every_kind_are_told_at_once_and_in_file_order() -> None:
    text = (
        CONNECTOR.replace("title: Juniper", "titel: Juniper")  # 3: shape
        .replace("check: GET /merchant", "check: FETCH /merchant")  # 19: form
        .replace("code: errors[0].code", "code: errors[0]code")  # 26: expression
        .replace("    - {status: 5xx, then: retry}", "    - {status: 401, then: retry}")  # 31: meaning
        .replace("get: GET /customers/{id}", "get: GET /customers/{ide}")  # 51: meaning
    )
    assert codes(text) == [
        ("unknown-key", 3),
        ("wrong-form", 19),
        ("bad-expression", 26),
        ("unreachable-rule", 31),
        ("unknown-placeholder", 51),
    ]


@pytest.mark.parametrize(
    ("earlier", "later", "unreachable"),
    [
        ("{status: 5xx, then: retry}", "{status: 503, then: wait}", True),
        ("{status: 503, then: wait}", "{status: 5xx, then: retry}", False),
        ("{status: [500, 502, 503], then: retry}", "{status: [502, 503], then: wait}", True),
        ("{status: 400, then: reject}", "{status: 400, code: A, then: fail}", True),
        ("{status: 400, code: A, then: reject}", "{status: 400, then: fail}", False),
        ("{code: [A, B], then: reject}", "{code: A, status: 400, then: fail}", True),
        ("{code: A, then: reject}", "{code: [A, B], then: fail}", False),
        ("{text: Not Found, then: recreate}", "{text: item not found, then: fail}", True),
        ("{text: item not found, then: recreate}", "{text: not found, then: fail}", False),
        (
            "{header: {X-Retry: 'no'}, then: reject}",
            "{header: {X-Retry: 'no'}, status: 409, then: retry}",
            True,
        ),
        ("{header: {X-Retry: 'no'}, then: reject}", "{header: {X-Retry: 'yes'}, then: retry}", False),
        ("{when: errors, then: reject}", "{when: errors, code: A, then: fail}", True),
        ("{then: fail}", "{status: 429, then: wait}", True),
    ],
)
def test_a_rule_covered_by_an_earlier_one_is_unreachable(earlier: str, later: str, unreachable: bool) -> None:
    rules = CONNECTOR[CONNECTOR.index("    - {status: 401") : CONNECTOR.index("resources:")]
    text = CONNECTOR.replace(rules, f"    - {earlier}\n    - {later}\n")
    assert codes(text) == ([("unreachable-rule", 30)] if unreachable else [])


def test_a_warning_is_no_error() -> None:
    text = CONNECTOR.replace(
        "list: {call: GET /orders, records: orders}",
        "list: {call: GET /orders, records: orders, since: query after}",
    )
    (found,) = lint_connector(read(text))
    assert (found.code, found.severity) == ("missing-pagination", "warning")


def test_a_file_is_known_by_its_first_key(tmp_path: Path) -> None:
    file = tmp_path / "juniper.yaml"
    file.write_text("manfest: 1\n")
    (found,) = lint_file(file)
    assert found.code == "unknown-kind"
    assert found.help[0] == "did you mean `manifest`?"


def test_a_connector_is_called_as_its_file(tmp_path: Path) -> None:
    file = tmp_path / "jupiter.yaml"
    file.write_text(CONNECTOR)
    (found,) = lint_file(file)
    assert (found.code, found.line, found.column) == ("wrong-name", 2, 12)


def test_a_template_beside_a_broken_connector_is_not_checked_further(tmp_path: Path) -> None:
    (tmp_path / "connectors").mkdir()
    (tmp_path / "connectors" / "juniper.yaml").write_text(CONNECTOR.replace("then: wait", "then: weit"))
    (tmp_path / "connectors" / "platform.yaml").write_text(PLATFORM)
    template = tmp_path / "mapping-templates" / "music-venue.yaml"
    template.parent.mkdir()
    template.write_text(TEMPLATE)
    assert [(each.code, each.line) for each in lint_file(template)] == [("unchecked", 3)]
    # Mended, it is read again.
    (tmp_path / "connectors" / "juniper.yaml").write_text(CONNECTOR)
    assert lint_file(template) == []
    for name in ("platform", "../connectors/juniper", "x" * 3000):
        template.write_text(TEMPLATE.replace("connector: juniper", f"connector: {name}"))
        assert "unknown-connector" in [each.code for each in lint_file(template)], name[:30]


def test_a_template_without_connectors_says_so(tmp_path: Path) -> None:
    template = tmp_path / "music-venue.yaml"
    template.write_text(TEMPLATE)
    assert [each.code for each in lint_file(template)] == ["unknown-connector"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert [each.code for each in lint_file(tmp_path / "gone.yaml")] == ["unreadable"]


def test_a_wrong_mapping_does_not_hide_what_is_wrong_with_the_next(
    connector: Connector, platform: Platform
) -> None:
    text = TEMPLATE.replace("direction: bidirectional", "direction: both").replace(
        "description: description", "description: descripton"
    )
    found = lint_template(read(text), connector, platform)
    assert [(each.code, each.line) for each in found] == [("unknown-value", 12), ("unknown-field", 30)]


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        # Made up for the other side: no field of ours is needed.
        ('{path: description, push: "{{ venue.name }}"}', []),
        ('{path: description, push: "{{ value | upper }}"}', ["unknown-field"]),
        ("description", ["unknown-field"]),
        ("[description]", ["unknown-field"]),
    ],
)
def test_a_field_that_is_not_ours(
    rule: str, found: list[str], connector: Connector, platform: Platform
) -> None:
    text = TEMPLATE.replace("description: description", f"made_up: {rule}")
    assert [each.code for each in lint_template(read(text), connector, platform)] == found


def test_a_required_field_may_come_from_new(platform: Platform) -> None:
    manifest = CONNECTOR.replace("new: {type: ITEM,", "new: {type: ITEM, name: Item,")
    connector = compile_connector(read_document(manifest, file="connectors/juniper.yaml"))
    text = TEMPLATE.replace("      name: name\n", "")
    assert lint_template(read(text), connector, platform) == []


def test_a_clean_manifest_is_linted_without_heavy_imports() -> None:
    """`hub lint` has half a second from start to end; each of these would take a good part of it."""
    program = (
        "import sys; from pathlib import Path; from engine.lint import lint_file\n"
        f"assert lint_file(Path({str(ROOT / 'connectors' / 'stripe.yaml')!r})) == []\n"
        "heavy = {'rapidfuzz', 'httpx', 'babel', 'sqlalchemy', 'litestar', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


STRANGE: list[Any] = [
    None,
    True,
    0,
    -1,
    2.5,
    "",
    "x",
    "{{ x }}",
    "a[",
    "GET /{a}{",
    [],
    [None],
    {},
    {"x": None},
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for step, inner in steps for place in _places(inner, (*path, step)))]


def _changed(data: Any, path: tuple[Any, ...], how: str, strange: Any) -> None:
    """Replace, remove or rename the value at a path."""
    holder = data
    for step in path[:-1]:
        try:
            holder = holder[step]
        except (KeyError, IndexError, TypeError):
            return  # An earlier change took it away.
    if not isinstance(holder, dict | list) or (isinstance(holder, dict) and path[-1] not in holder):
        return
    if isinstance(holder, list) and (not isinstance(path[-1], int) or path[-1] >= len(holder)):
        return
    if how == "rename" and isinstance(holder, dict):
        holder[f"{path[-1]}_x"] = holder.pop(path[-1])
    elif how == "remove":
        del holder[path[-1]]
    else:
        holder[path[-1]] = copy.deepcopy(strange)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("kind", ["connector", "platform", "template"])
def test_whatever_is_broken_is_told_and_never_raised(
    kind: str, data: st.DataObject, connector: Connector, platform: Platform
) -> None:
    text = {"connector": CONNECTOR, "platform": PLATFORM, "template": TEMPLATE}[kind]
    changed = read(text).data
    places = _places(changed)[1:]
    for _ in range(data.draw(st.integers(1, 3))):
        how = data.draw(st.sampled_from(["replace", "remove", "rename"]))
        _changed(changed, data.draw(st.sampled_from(places)), how, data.draw(st.sampled_from(STRANGE)))
    document = read(json.dumps(changed))
    if kind == "template":
        found = lint_template(document, connector, platform)
    elif kind == "connector":
        found = lint_connector(document)
        made, faults = check_connector(document)
        assert (made is None) == bool(faults)
    else:
        found = lint_platform(document)
        made_platform, faults = check_platform(document)
        assert (made_platform is None) == bool(faults)
    assert all(each.message and each.line >= 1 and each.column >= 1 for each in found)


@pytest.mark.parametrize("key", ["read", "send", "total", "more", "overlap"])
def test_what_stands_beside_a_wrong_type_is_left_alone(key: str) -> None:
    """Which keys a type has can't be told then, nor what they would hold."""
    changed = read(CONNECTOR).data
    changed["resources"]["customer"]["list"]["pagination"] = {"type": "curser", key: True}
    found = lint_connector(read(json.dumps(changed)))
    assert [each.code for each in found][:1] == ["unknown-value"]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("{path: preferences.marketing, values: {'true': subscribed, 'false': unsubscribed}}", []),
        ("{path: preferences.marketing, values: {'true': Subscribed}}", ["`Subscribed`"]),
        ("{path: preferences.marketing, values: {'yes': subscribed, 'no': 1}}", ["`yes`", "`no`", "1"]),
        ("{path: preferences.marketing, push: '{{ value }}', default: pending}", ["`pending`"]),
    ],
)
def test_tables_and_defaults_name_what_both_sides_can_have(
    connector: Connector, platform: Platform, rule: str, said: list[str]
) -> None:
    start = TEMPLATE.index("      accepts_marketing:")
    end = TEMPLATE.index("  - entity: event")
    text = f"{TEMPLATE[:start]}      accepts_marketing: {rule}\n\n{TEMPLATE[end:]}"
    found = lint_template(read(text), connector, platform)
    assert [each.code for each in found] == ["unknown-value"] * len(said)
    shown = {each.message.rsplit(" is never ", 1)[1] for each in found}
    assert shown == set(said)


def test_a_default_is_a_value_that_the_field_can_have(connector: Connector, platform: Platform) -> None:
    rule = "      description: description\n      status: {path: note, push: '{{ value }}', default: x}\n"
    text = TEMPLATE.replace("      description: description\n", rule)
    more = CONNECTOR.replace(
        "      description: text\n", "      description: text\n      note: {one_of: [x, y]}\n"
    )
    other = compile_connector(read_document(more, file="connectors/juniper.yaml"))
    assert lint_template(read(text), other, platform) == []
    [found] = lint_template(read(text.replace("default: x", "default: z")), other, platform)
    assert "`note` of juniper `item` is never `z`" in found.message
