"""The rates of the hosted service, to the cent."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masklet.models import MODELS, find_model
from masklet.price import price


@pytest.mark.parametrize(
    ("model", "frames", "objects", "dollars"),
    [
        ("large", 1800, 1, "0.2448"),  # 0.216 + 0.0288
        ("large", 1800, 3, "0.3024"),
        ("large", 18000, 2, "2.736"),
        ("tiny", 1800, 1, "0.1728"),  # 0.144 + 0.0288
        ("tiny", 900, 4, "0.1296"),
        ("sam2_hiera_large", 1800, 1, "0.2448"),
        ("sam2.1_hiera_tiny", 1800, 1, "0.1728"),
    ],
)
def test_the_contract_s_numbers(model: str, frames: int, objects: int, dollars: str) -> None:
    assert Decimal(str(price(find_model(model), frames, objects).total)) == Decimal(dollars)


def test_a_run_costs_at_least_a_cent() -> None:
    assert price(find_model("large"), 1, 1).total == 0.01
    # 0.2448 * 73 / 1800 is below a cent, 0.2448 * 74 / 1800 above it
    assert price(find_model("large"), 73, 1).total == 0.01
    assert price(find_model("large"), 74, 1).total == pytest.approx(0.010064)


def test_a_price_says_how_it_came_about() -> None:
    cost = price(find_model("tiny"), 450, 2)
    assert (cost.model, cost.frames, cost.objects) == ("sam2.1_hiera_tiny", 450, 2)
    assert (cost.minutes, cost.price_per_minute, cost.price_per_object_minute) == (
        0.25,
        0.144,
        0.0288,
    )


@settings(deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.integers(1, 10_000_000), st.integers(1, 1000))
def test_exact_arithmetic_gives_the_same(model: str, frames: int, objects: int) -> None:
    spec = MODELS[model]
    minutes = Fraction(frames, 1800)
    per_video = Fraction(str(spec.price_per_minute))
    per_object = Fraction(str(spec.price_per_object_minute))
    exact = max(per_video * minutes + per_object * objects * minutes, Fraction(1, 100))
    found = price(spec, frames, objects).total
    assert found == pytest.approx(float(exact), abs=1e-6)
    assert found <= price(spec, frames + 1800, objects).total
    assert found <= price(spec, frames, objects + 1).total
