"""Our methods on numbers that the authors' code gave: equal, or different as is said."""

import pytest
import torch

from golden.compare import COMPARISONS, DEPARTURES, largest


@pytest.mark.parametrize("name", COMPARISONS)
def test_equals_the_released_code(name):
    pairs = COMPARISONS[name].pairs()
    # Numbers to be equal to, of which the released code gave some that are not zero.
    assert any(theirs.count_nonzero() for _, theirs in pairs.values())
    for key, (mine, theirs) in pairs.items():
        torch.testing.assert_close(
            mine, theirs, rtol=1e-8, atol=1e-8, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("departure", DEPARTURES, ids=lambda x: f"{x.recording}: {x.says}")
def test_departs_from_the_released_code(departure):
    assert largest(departure.pairs()) == pytest.approx(departure.size, rel=0.01)
