"""The mutation score of the template packs, on a share of the mutants, and the tool that measures it.

`make mutation` looks at every one.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.mutation import score as scoring
from tests.mutation.__main__ import main
from tests.mutation.mutants import Mutant, mutants_of, put
from tests.mutation.score import LEAST, scores
from tests.mutation.words import changes_of, negated
from tests.snapshot.templates import rendering

SHARE, SEED = 0.12, 20261124


def test_samples_notice_nearly_every_wrong_template() -> None:
    made = scores(share=SHARE, seed=SEED)
    left = [str(survivor) for score in made for survivor in score.survivors]
    assert sum(score.killed for score in made) > 700
    assert 100 * sum(score.killed for score in made) >= LEAST * sum(score.counted for score in made), left


# ---- what is changed -----------------------------------------------------------------------------------


def changed(text: str) -> set[tuple[str, str]]:
    return {(each.kind, each.text) for each in changes_of(text)}


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("{{ value | default('x') | upper }}", "remove filter",
         ["{{ value  | upper }}", "{{ value | default('x')  }}"]),
        ("{{ value | default('x') }}", "change constant", ["{{ value | default('x~') }}"]),
        ("{{ 1 + record.a }}", "change constant", ["{{ 2 + record.a }}"]),
        ("{{ 1 + record.a }}", "change calculation", ["{{ 1 - record.a }}"]),
        ("{{ 1 + record.a }}", "change source", ["{{ 1 + record.a_ }}"]),
        ("{{ value is not none }}", "negate condition", ["{{ value is none }}"]),
        ("{{ value is none }}", "negate condition", ["{{ value is not none }}"]),
        ("{{ value not in ['a'] }}", "negate condition", ["{{ value  in ['a'] }}"]),
        ("{{ value in ['a'] }}", "negate condition", ["{{ value not in ['a'] }}"]),
        ("{{ not value }}", "negate condition", ["{{  value }}"]),
        ("{{ 'a' if value and true else 'b' }}", "negate condition",
         ["{{ 'a' if not (value and true) else 'b' }}"]),
        ("{{ value and record.a }}", "change condition", ["{{ value or record.a }}"]),
        ("{{ value >= 3 }}", "change comparison", ["{{ value < 3 }}", "{{ value > 3 }}"]),
        ("{{ value }} #{{ record.id }}", "change constant", ["{{ value }} #~{{ record.id }}"]),
        ("state != 'DRAFT' && paid", "change comparison", ["state == 'DRAFT' && paid"]),
        ("state != 'DRAFT' && paid", "change condition", ["state != 'DRAFT' || paid"]),
        ("state != 'DRAFT' && paid", "change constant", ["state != 'DRAFT~' && paid"]),
        ("state != 'DRAFT' && paid", "change source",
         ["state_ != 'DRAFT' && paid", "state != 'DRAFT' && paid_"]),
        ("total > `0`", "change constant", ["total > `1`"]),
        ("!paid", "negate condition", ["paid"]),
    ],
)  # fmt: skip
def test_a_word_of_an_expression_is_changed(text: str, kind: str, expected: list[str]) -> None:
    assert {each for of, each in changed(text) if of == kind} == set(expected)


def test_a_change_tells_its_place() -> None:
    (each,) = [each for each in changes_of("{{ record.status == 'paid' }}") if each.kind == "change constant"]
    assert (each.offset, each.was, each.now) == (20, "'paid'", "'paid~'")


def test_a_condition_is_negated_whole() -> None:
    assert negated("{{ record.a or record.b }}") == "{{ not (record.a or record.b) }}"
    assert negated("first || last") == "!(first || last)"
    assert negated("{{ a }} and {{ b }}") is None


MAPPING: dict[str, Any] = {
    "entity": "customer",
    "resource": "customer",
    "direction": "bidirectional",
    "match_on": "email",
    "when_both_changed": "newest_wins",
    "only_when": "email",
    "fields": {
        "email": "email_address",
        "phone": {"path": "phone_number", "required": True},
        "number": ["reference_id", "id"],
        "status": {"path": "state", "values": {"on": "ACTIVE", "off": "GONE"}, "unknown": "keep"},
        "owner": {"path": "owner_id", "link": "customer", "optional": True},
    },
}


def of_kind(kind: str) -> list[Mutant]:
    return [each for each in mutants_of(MAPPING, ("customer", "order")) if each.kind == kind]


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("drop mapping", 1),
        ("drop field", 5),
        ("drop rule", 2),
        ("swap order", 1),
        ("swap sources", 15),  # any two of the six rules
        ("drop condition", 1),
        ("drop required", 1),
        ("drop optional", 1),
        ("drop link", 1),
        ("change link", 1),
        ("drop unknown", 1),
        ("drop value", 2),
        ("swap values", 1),
        # two other directions, three other rules for conflicts, no match or another of the four
        ("change decision", 2 + 3 + 1 + 4),
    ],
)
def test_every_kind_of_wrong_mapping(kind: str, count: int) -> None:
    assert len(of_kind(kind)) == count


def test_sources_are_swapped_whole() -> None:
    swapped = next(each for each in of_kind("swap sources") if each.says == "email_address <-> phone_number")
    assert swapped.written is not None
    assert swapped.written["fields"]["email"] == "phone_number"
    assert swapped.written["fields"]["phone"] == {"path": "email_address", "required": True}
    assert MAPPING["fields"]["email"] == "email_address"  # the mapping itself stays


def test_putting_a_value_leaves_the_rest() -> None:
    assert put({"a": [1, {"b": 2}]}, ("a", 1, "b"), 3) == {"a": [1, {"b": 3}]}


# ---- what is told --------------------------------------------------------------------------------------


def test_a_survivor_tells_its_place_and_what_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the samples of long texts nobody notices that nothing is cut any more."""
    own = rendering.samples_of("mailchimp", "default")
    short = tuple(each for each in own if each.name != "a customer with long names")
    monkeypatch.setattr(scoring, "samples_of", lambda connector, name: short)
    (made,) = scores(["mailchimp/default"])
    text = (rendering.TEMPLATES / "mailchimp" / "default.yaml").read_text("utf-8").split("\n")
    line = next(number for number, each in enumerate(text, 1) if "truncate_to(255)" in each)
    column = text[line - 1].index("| truncate_to") + 1
    assert str(made.survivors[0]) == (
        f"mapping-templates/mailchimp/default.yaml:{line}:{column}: mailchimp/default: remove filter: "
        "`| truncate_to(255)` removed; add a sample whose value the filter changes"
    )
    assert made.percent < 100 * made.killed / (made.killed + 1)


def test_what_a_template_inherits_is_told_where_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "samples_of", lambda connector, name: ())
    (made,) = scores(["mailchimp/theater"], share=0.2, seed=1)
    assert {each.place.split(":")[0] for each in made.survivors} == {
        "mapping-templates/mailchimp/default.yaml"
    }


def test_a_template_that_is_not_there_is_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stripe/nightclub"]) == 2
    assert "stripe/default" in capsys.readouterr().err


def test_the_score_decides_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mailchimp/theater"]) == 0
    shown = capsys.readouterr().out
    assert "mailchimp/theater" in shown
    assert "100.0%" in shown
    monkeypatch.setattr(scoring, "samples_of", lambda connector, name: ())
    assert main(["mailchimp/theater"]) == 1
    assert "add a sample" in capsys.readouterr().out


def test_a_template_that_isnt_as_its_snapshot_has_no_score(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scoring, "rendering", lambda connector, name: {"samples": {}})
    assert main(["mailchimp/theater"]) == 1
    assert "not as the snapshots hold it: mailchimp/theater;" in capsys.readouterr().out


def test_an_equivalent_that_there_is_none_of_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = {"connector": "stripe", "pair": "a - b", "at": "x", "kind": "drop rule", "says": "y", "why": "z"}
    monkeypatch.setattr(scoring, "_equivalents", lambda: [stale])
    monkeypatch.setattr(scoring, "template_files", lambda: [])
    with pytest.raises(ValueError, match="there are none of"):
        scores()
