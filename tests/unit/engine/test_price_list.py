"""What calls cost, as a manifest and an operator's price list say it."""

from decimal import Decimal
from pathlib import Path

import pytest

from engine.documents import read_document
from engine.errors import ManifestError
from engine.lint import lint_file
from engine.manifest import Costs, PriceList, PriceStep, check_price_list, load_connector, load_price_list

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "connectors" / "juniper.yaml"


def written(folder: Path, costs: str) -> Path:
    file = folder / "prices.yaml"
    file.write_text(f"prices: 1\nproviders:\n  juniper: {costs}\n", "utf-8")
    return file


def test_prices_are_exact_and_in_order(tmp_path: Path) -> None:
    steps = '[{above: 100000, price: "0.00015"}, {above: 10000, price: "0.0002"}, {price: "0.1"}]'
    file = written(tmp_path, f'{{currency: USD, monthly: "9.00", calls: {steps}, megabytes: "0.05"}}')
    assert load_price_list(file) == PriceList(
        None,
        {
            "juniper": Costs(
                currency="USD",
                monthly=Decimal("9.00"),
                calls=(
                    PriceStep(0, Decimal("0.1")),
                    PriceStep(10_000, Decimal("0.0002")),
                    PriceStep(100_000, Decimal("0.00015")),
                ),
                megabytes=(PriceStep(0, Decimal("0.05")),),
            )
        },
    )


def test_a_manifest_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "juniper.yaml"
    file.write_text(f'{EXAMPLE.read_text("utf-8")}\ncosts: {{currency: EUR, calls: "0.0001"}}\n', "utf-8")
    assert lint_file(file) == []
    assert load_connector(file).costs == Costs("EUR", calls=(PriceStep(0, Decimal("0.0001")),))
    assert load_connector(EXAMPLE).costs is None


@pytest.mark.parametrize(
    ("costs", "code", "says"),
    [
        ("{currency: USD, calls: 0.0002}", "wrong-type", "0.0002"),
        ('{currency: USD, calls: "-1"}', "wrong-form", "-1"),
        ('{currency: USD, calls: "1e3"}', "wrong-form", "1e3"),
        ('{currency: USD, monthly: "1234567"}', "wrong-form", "1234567"),
        ('{currency: usd, calls: "1"}', "wrong-form", "usd"),
        ('{calls: "1"}', "missing-key", "currency"),
        ('{currency: USD, per_call: "1"}', "unknown-key", "per_call"),
        ("{currency: USD, calls: []}", "too-few", "calls"),
        ('{currency: USD, calls: [{above: -1, price: "1"}]}', "out-of-range", "-1"),
        ("{currency: USD, calls: [{above: 5}]}", "missing-key", "price"),
        (
            '{currency: USD, calls: [{above: 5, price: "1"}, {above: 5, price: "2"}]}',
            "no-effect",
            "two prices begin above 5",
        ),
    ],
)
def test_what_is_wrong_is_told_where_it_stands(tmp_path: Path, costs: str, code: str, says: str) -> None:
    file = written(tmp_path, costs)
    found = lint_file(file)
    assert [(each.code, each.line) for each in found] == [(code, 3)]
    assert says in found[0].message
    with pytest.raises(ManifestError):
        load_price_list(file)


def test_a_list_says_what_it_is() -> None:
    prices, found = check_price_list(read_document("prices: 2"))
    assert prices is None
    assert [each.code for each in found] == ["unknown-value"]
