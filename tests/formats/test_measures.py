import math

import pytest
import torch

from pelagos.formats.measures import bias, max_relative_error, relative_rms_error, signal_to_noise_db

REFERENCE = torch.tensor([3.0, -4.0, 0.0, 5.0])  # rms = sqrt(50 / 4)
VALUE = torch.tensor([3.3, -4.0, 0.0, 4.5])
ALL = [relative_rms_error, max_relative_error, bias, signal_to_noise_db]


def test_by_hand():
    rms = math.sqrt(12.5)
    error = math.sqrt((0.3**2 + 0.5**2) / 4)
    assert relative_rms_error(VALUE, REFERENCE) == pytest.approx(error / rms, rel=1e-6)
    assert max_relative_error(VALUE, REFERENCE) == pytest.approx(0.1, rel=1e-6)
    assert bias(VALUE, REFERENCE) == pytest.approx(-0.05 / rms, rel=1e-6)
    assert signal_to_noise_db(VALUE, REFERENCE) == pytest.approx(20 * math.log10(rms / error), rel=1e-6)


def test_equal_tensors_and_zero_references():
    zero = torch.zeros(4)
    assert [m(REFERENCE, REFERENCE) for m in ALL] == [0.0, 0.0, 0.0, math.inf]
    assert [m(zero, zero) for m in ALL] == [0.0, 0.0, 0.0, math.inf]
    assert [m(-torch.ones(4), zero) for m in ALL] == [math.inf, math.inf, -math.inf, -math.inf]


def test_dtypes_are_not_the_limit():
    """Differences below the resolution of the inputs' own dtypes are seen, and squares do not overflow."""
    big = torch.tensor([1e30, 1e30])
    assert relative_rms_error(big * 1.5, big) == pytest.approx(0.5, rel=1e-6)
    assert bias(torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0 + 2.0**-20])) == pytest.approx(
        -(2.0**-20), rel=1e-3
    )


@pytest.mark.parametrize("measure", ALL)
def test_nan_shows_and_bad_shapes_are_refused(measure):
    assert math.isnan(measure(torch.tensor([math.nan, 1.0]), torch.ones(2)))
    assert math.isnan(measure(torch.ones(2), torch.tensor([math.nan, 1.0])))
    with pytest.raises(ValueError, match="one shape"):
        measure(torch.ones(2), torch.ones(1))
    with pytest.raises(ValueError, match="an element"):
        measure(torch.ones(0), torch.ones(0))
