"""The code blocks of the project's Markdown files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"(?m)^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `line` is that of its first line of text."""

    file: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Return every page people read: README, the changelog and all of `docs/`."""
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(file: Path) -> Iterator[Block]:
    text = file.read_text("utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("text")) + 1
        yield Block(file, line, found["language"], found["text"])


def blocks(*languages: str) -> list[Block]:
    """Return the blocks in these languages, of all pages."""
    return [block for page in pages() for block in blocks_of(page) if block.language in languages]
