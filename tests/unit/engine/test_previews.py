"""Packs side by side over their samples, and `hub explain`."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engine.cli import commands
from engine.documents import read_document
from engine.previews import Sample, SampleError, read_samples, sample_files

PROJECT = Path(__file__).parents[3]

BASE = """\
template: 1
name: default
connector: stripe
title: Base
mappings:
  - entity: customer
    resource: customer
    direction: bidirectional
    only_when: email
    fields:
      email: email
      phone: {path: phone, push: "{{ value | e164('FR') }}", pull: "{{ value }}"}
      city: {path: address.city, default: Nîmes}
"""
OVER = """\
template: 1
name: opera
extends: default
connector: stripe
title: Opera <on> Stripe
mappings:
  - entity: customer
    resource: customer
    fields: {city: ~, country: {path: address.country, required: true}}
"""
SAMPLES = """\
venue: {id: v, name: Salle, currency: EUR}
samples:
  - name: Ana | <b>
    push: customer
    record: {id: c1, email: ana@example.com, phone: "04 66 00 00 00", country: FR}
  - name: nobody
    push: customer
    venue: {currency: JPY}
    record: {id: c2, email: null, phone: "1", country: null, price: 1.50}
  - name: back
    pull: customer
    record: {id: cus_1, email: ana@example.com, address: {country: FR}}
    links: {product prod_1: e1}
    lengths: {description: 30}
"""


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one template over another one, whose samples lie beside it."""
    (tmp_path / "connectors").symlink_to(PROJECT / "connectors")
    folder = tmp_path / "mapping-templates" / "stripe"
    folder.mkdir(parents=True)
    (folder / "default.yaml").write_text(BASE, "utf-8")
    (folder / "opera.yaml").write_text(OVER, "utf-8")
    (tmp_path / "tests/snapshot/templates/stripe").mkdir(parents=True)
    (tmp_path / "tests/snapshot/templates/stripe/default.samples.yaml").write_text(SAMPLES, "utf-8")
    monkeypatch.chdir(tmp_path)
    return folder


def run(*arguments: str, given: str = "") -> Result:
    return CliRunner().invoke(commands, list(arguments), input=given)


def test_samples_are_read(pack: Path) -> None:
    [file] = sample_files(pack / "opera.yaml", ("default", "opera"))
    first, second, third = read_samples(read_document(file))
    assert first == Sample(
        "Ana | <b>",
        "push",
        "customer",
        {"id": "c1", "email": "ana@example.com", "phone": "04 66 00 00 00", "country": "FR"},
        None,
        {},
        {"id": "v", "name": "Salle", "currency": "EUR", "timezone": "UTC"},
    )
    assert (second.venue["currency"], second.record["price"]) == ("JPY", Decimal("1.50"))
    assert (third.way, third.links) == ("pull", {("product", "prod_1"): "e1"})
    assert third.record["description"] == "abcdefghijklmnopqrstuvwxyzabcd"
    (pack / "opera.samples.yaml").write_text("samples: []\n", "utf-8")
    found = sample_files(pack / "opera.yaml", ("default", "opera"))
    assert [each.name for each in found] == ["opera.samples.yaml", "default.samples.yaml"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1", "has no list of `samples`"),
        ("samples: [{record: {}}]", "sample 1 of s.yaml needs `push` or `pull`"),
        ("samples: [{push: a, pull: a, record: {}}]", "needs `push` or `pull`"),
        ("samples: [{push: a}]", "sample 1 of s.yaml needs a `record`"),
        ("samples: [{push: a, record: {}, links: {b: c}}]", "has the link `b`: it takes `resource id`"),
    ],
)
def test_what_is_no_file_of_samples(text: str, says: str) -> None:
    with pytest.raises(SampleError, match=re.escape(says)):
        read_samples(read_document(text, file="s.yaml"))


def test_a_pack_side_by_side(pack: Path) -> None:
    done = run("preview", "stripe/opera")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "Opera <on> Stripe (stripe/opera)" in said
    assert "customer → customer: Ana | <b>" in said
    assert "customer ← customer: back" in said
    assert (
        '│ phone = "04 66 00 00 00" │ {{ value | e164(\'FR\') }} │ default:12 │ phone │ "+33466000000" │'
        in said
    )
    assert "error" in said  # nobody has no country
    assert "left out: this doesn't hold: email" in said
    assert "opera:9" in said


def test_the_same_as_markdown_and_as_a_page(pack: Path, tmp_path: Path) -> None:
    done = run("preview", "stripe/opera", "--markdown", "p.md", "--html", "p.html", "--direction", "push")
    assert done.exit_code == 0, done.output
    text, page = (tmp_path / "p.md").read_text("utf-8"), (tmp_path / "p.html").read_text("utf-8")
    assert text.startswith(
        "# Opera \\<on\\> Stripe (stripe/opera)\n\n## customer → customer: Ana \\| \\<b\\>\n"
    )
    assert (
        "| `phone = \"04 66 00 00 00\"` | `{{ value \\| e164('FR') }}` | `default:12` | `phone` "
        '| `"+33466000000"` |' in text
    )
    assert "back" not in text
    assert "<caption>customer → customer: Ana | &lt;b&gt;</caption>" in page
    assert "<b>" not in page
    assert '<tr class="failed">' in page
    assert page.count("<table>") == 2


def test_a_preview_as_json_of_some_mappings(pack: Path) -> None:
    rows = json.loads(run("preview", "stripe/opera", "--json", "--direction", "pull").output)["mappings"]
    [row] = rows
    assert (row["sample"], row["mapped"]) == ("back", {"email": "ana@example.com", "country": "FR"})
    none = run("preview", "stripe/opera", "--entity", "order")
    assert (none.exit_code, "no sample is for a mapping" in none.output) == (2, True)


def test_a_record_explained(pack: Path) -> None:
    record = json.dumps({"email": "a@b.example", "phone": "04 66 00 00 00"})
    done = run("explain", "stripe/opera", "--entity", "customer", "--record", "-", given=record)
    assert done.exit_code == 1
    assert done.output == (
        "customer → customer: the record\n"
        "\n"
        "customer.email\n"
        '    from    customer.email = "a@b.example"\n'
        "    rule    copied  (default, mapping-templates/stripe/default.yaml:11)\n"
        '    result  "a@b.example"\n'
        "customer.phone\n"
        '    from    customer.phone = "04 66 00 00 00"\n'
        "    rule    {{ value | e164('FR') }}  (default, mapping-templates/stripe/default.yaml:12)\n"
        '    result  "+33466000000"\n'
        "customer.address.country\n"
        "    from    customer.country = –\n"
        "    rule    copied; required  (opera, mapping-templates/stripe/opera.yaml:9)\n"
        "    error   [error] `country` has no value, and this mapping requires one\n"
        "\n"
        "error: `country` has no value, and this mapping requires one\n"
    )


def test_a_record_of_theirs_explained_as_json(pack: Path) -> None:
    given = json.dumps({"phone": "1", "address": {"city": "Arles"}})
    done = run("explain", "stripe/default", "-r", "-", "--direction", "pull", "--json", given=given)
    assert done.exit_code == 0
    [told] = json.loads(done.output)["mappings"]
    assert told["mapped"] == {"phone": "1", "city": "Arles"}
    assert [(each["source"], each["target"], each["outcome"]) for each in told["rules"]] == [
        ("customer.email", "customer.email", "absent"),
        ("customer.phone", "customer.phone", "made"),
        ("customer.address.city", "customer.city", "made"),
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("explain", "stripe/oprea", "-r", "-"), "did you mean `stripe/opera`?"),
        (("explain", "stripe/opera", "-r", "-", "--entity", "event"), "`opera` has customer bidirectional"),
        (("explain", "stripe/opera", "-r", "-", "--venue", "[]"), "--venue isn't a record"),
        (("preview", "stripe/opera", "-", "--html", "x"), "go without SAMPLE"),
    ],
)
def test_what_is_misused(pack: Path, arguments: tuple[str, ...], says: str) -> None:
    done = run(*arguments, given="{}")
    assert (done.exit_code, says in " ".join(done.output.replace("│", " ").split())) == (2, True), done.output


def test_a_template_that_is_wrong_is_told_as_lint_does(pack: Path) -> None:
    (pack / "opera.yaml").write_text(OVER.replace("address.country", "address..country"), "utf-8")
    done = run("explain", "stripe/opera", "-r", "-", given="{}")
    assert (done.exit_code, "mapping-templates/stripe/opera.yaml:9:" in done.output) == (1, True)
