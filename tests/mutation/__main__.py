"""`make mutation`: wrong in one place after the other, is a template noticed by its samples?

    python -m tests.mutation [CONNECTOR/TEMPLATE ...] [--verbose]

Exit status 0: at least 95 % of every template's mutants, and of all, are noticed; 1: fewer; 2: misuse.
"""

from __future__ import annotations

import sys
import time

from tests.mutation.score import LEAST, Score, outdated, scores
from tests.snapshot.templates.rendering import template_files


def main(arguments: list[str]) -> int:
    """Print the score of the templates named, or of all, and the mutants that nothing noticed."""
    names = [each for each in arguments if not each.startswith("-")]
    known = {f"{path.parent.name}/{path.stem}" for path in template_files()}
    unknown = [each for each in names if each not in known]
    if unknown or set(arguments) - set(names) - {"--verbose"}:
        sys.stderr.write(f"usage: python -m tests.mutation [--verbose] [{' | '.join(sorted(known))}]\n")
        return 2
    old = outdated(names or sorted(known))
    if old:
        print(f"not as the snapshots hold it: {', '.join(old)}; `make snapshots` accepts what there is now")
        return 1
    started = time.monotonic()
    made = scores(names)
    for score in made:
        for survivor in score.survivors:
            print(survivor)
    print(f"{'template':<28}{'score':>8}{'killed':>8}{'left':>6}{'refused':>9}{'equivalent':>12}")
    for score in [*made, _total(made)]:
        print(_line(score))
    if "--verbose" in arguments:
        for kind, count in sorted(_total(made).kinds.items()):
            print(f"  {kind:<24}{count:>6}")
    print(f"{time.monotonic() - started:.1f} s")
    return 0 if all(each.percent >= LEAST for each in [*made, _total(made)]) else 1


def _total(made: list[Score]) -> Score:
    total = Score("all")
    for each in made:
        total.killed += each.killed
        total.refused += each.refused
        total.equivalent += each.equivalent
        total.survivors += each.survivors
        total.kinds += each.kinds
    return total


def _line(score: Score) -> str:
    return (
        f"{score.template:<28}{score.percent:>7.1f}%{score.killed:>8}{len(score.survivors):>6}"
        f"{score.refused:>9}{score.equivalent:>12}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
