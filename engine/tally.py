"""What a run of one mapping did so far, counted in records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.ports import Direction, RecordFailure

KEPT_FAILURES = 100  # in a tally; all of them are saved


@dataclass(slots=True)
class Tally:
    """What happened so far, in records; `seconds` and `api_calls` are this mapping's alone."""

    entity: str
    resource: str
    direction: Direction
    read: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: int = 0
    failed: int = 0
    conflicts: int = 0
    archived: int = 0
    deleted: int = 0  # at the provider: by us on a push, by somebody else on a pull
    held: int = 0  # records that would have been archived, deleted or unlinked, had they not been too many
    note: str = ""  # what a person has to know, such as why records are held
    api_calls: int = 0
    seconds: float = 0.0
    failures: list[RecordFailure] = field(default_factory=list)
    # What became of fields that both sides had changed: how often each of `platform`, `provider` and `person`
    # decided, or that it is `open`.
    contested: dict[str, dict[str, int]] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)  # how many values were cut to their field's length

    def add_cut(self, fields: Iterable[str]) -> None:
        """Count values that were cut to their field's length, and say so."""
        for name in fields:
            self.cut[name] = self.cut.get(name, 0) + 1
            told = (f"`{name}` was cut to its length in {number}" for name, number in self.cut.items())
            self.note = f"{', '.join(told)} of the records sent"

    def add_contested(self, name: str, outcome: str) -> None:
        """Count what became of a field that both sides had changed."""
        outcomes = self.contested.setdefault(name, {})
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    def add_failure(self, failure: RecordFailure) -> None:
        self.failed += 1
        if len(self.failures) < KEPT_FAILURES:
            self.failures.append(failure)
