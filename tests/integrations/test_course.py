import pytest
from torch import nn

import evenly
from evenly.integrations import course


def acting(*epochs, writes="loss"):
    """A method that acts in these epochs."""

    class Acting(evenly.Method):
        info = evenly.Info(title="Acting", writes=writes, in_epochs=("start",))
        state = ("known",)
        known = 1

        def is_due(self, epoch):
            return epoch in epochs

    return Acting({"a": nn.Linear(2, 2)})


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (acting(7), "Acting acts in epoch 7 (counted from 0), but"),
        (acting(7, 9, writes="weights"), "Acting acts before epochs 7 and 9 (counted from 0), but"),
        (acting(*range(7, 5000)), "Acting acts from epoch 7 on (counted from 0), but"),
        (acting(*range(7, 20)), "Acting acts in epochs 7 to 19 (counted from 0), but"),
        (acting(*range(6, 5000, 3)), "Acting acts in epochs 6, 9, 12, 15, ... (counted from 0), "),
    ],
)
def test_says_which_epochs_a_short_training_lacks(method, text):
    assert course.too_short(method, 6).startswith(f"By its schedule, {text}")
    assert course.too_short(method, 6).endswith(" but this training has 6 epochs.")
    found = course.never_acted(method, 1)
    assert found.endswith("ended after 1 epoch. Train longer, or change `start`.")


def test_a_method_that_never_acts():
    for text in (course.too_short(acting(), 6), course.never_acted(acting(), 6)):
        assert text == "By its schedule, Acting acts in no epoch with these settings."


def test_is_silent_where_the_method_acts_or_the_end_is_not_known():
    assert course.too_short(acting(7), 8) is None
    assert course.too_short(acting(), 2**63) is None
    assert course.too_short(evenly.Method(), 1) is None


def test_a_method_that_remembers_has_one_training():
    method, forgetful = acting(), evenly.Method()
    course.check_new(method)
    course.begin(method)
    course.begin(forgetful)
    course.check_new(forgetful)
    with pytest.raises(ValueError, match="this Acting remembers known of a training that has"):
        course.check_new(method)
