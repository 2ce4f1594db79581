"""README's Python runs as it stands there, against the simulated provider."""

from functools import partial

import pytest

import engine
from tests.docs.blocks import ROOT, blocks_of
from tests.sandbox.running import running_sandbox


def test_the_python_of_the_readme_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = [block for block in blocks_of(ROOT / "README.md") if block.language == "python"]
    monkeypatch.chdir(ROOT)
    with running_sandbox(seed="demo", known_emails=["ana.ruiz@example.com"]) as sandbox:
        overrides = {"https://api.stripe.com": sandbox.stripe_url}
        # Only the addresses and the key are the test's own.
        monkeypatch.setattr(
            engine, "connect", partial(engine.connect, origin_overrides=overrides), raising=False
        )
        exec(compile(block.text.replace("sk_test_…", "sk_test_demo"), block.name, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15  # as many as the demo has
    assert "ana.ruiz@example.com" in lines
