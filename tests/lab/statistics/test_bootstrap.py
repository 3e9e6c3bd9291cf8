import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from evenly.lab.statistics import bootstrap


def test_each_repeat_is_a_mean():
    drawn = bootstrap.weights(5, 40)
    np.testing.assert_allclose(drawn.seeds.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(drawn.samples.sum(1), 1, rtol=1e-5)
    assert set(np.unique(np.round(4 * drawn.seeds)).tolist()) <= {0, 1, 2, 3, 4}
    assert bootstrap.weights(5, 40) is drawn


def test_one_draw_fewer_makes_the_variance_of_a_mean_unbiased():
    """Of 1, 2, 4: s² / 3 = (7/3) / 3, where three draws would give 2/3 of it."""
    means = bootstrap.weights(3, 10).seeds @ np.array([1.0, 2.0, 4.0])
    assert means.var() == pytest.approx(7 / 9, rel=0.05)


def test_metrics_of_plain_weights_are_the_plain_metrics():
    stream = np.random.default_rng(0)
    target, guess = stream.integers(4, size=30), stream.integers(4, size=(3, 30))
    plain = np.full((1, 30), 1 / 30, np.float32)
    expected = (guess == target).mean(1)
    np.testing.assert_allclose(bootstrap.mean(plain, guess == target)[0], expected, rtol=1e-5)
    expected = [f1_score(target, one, average="macro") for one in guess]
    np.testing.assert_allclose(bootstrap.macro_f1(plain, guess, target)[0], expected, rtol=1e-5)


def test_macro_f1_of_drawn_samples():
    """Weights 2, 1, 0, 0 of four samples are the first twice and the second once."""
    target, guess = np.array([0, 1, 2, 2]), np.array([[0, 0, 2, 1]])
    drawn = np.array([[2, 1, 0, 0]], np.float32) / 3
    expected = f1_score([0, 0, 1], [0, 0, 0], average="macro")  # 0.8 and 0; class 2 is not there
    assert bootstrap.macro_f1(drawn, guess, target)[0, 0] == pytest.approx(expected)


def found(ours, theirs):
    drawn = bootstrap.weights(*ours.shape)
    parts = (bootstrap.mean(drawn.samples, x) for x in (ours, theirs))
    return bootstrap.difference(drawn, *parts, (ours.mean(1).tolist(), theirs.mean(1).tolist()))


def test_the_same_predictions_do_not_differ():
    same = np.random.default_rng(0).random((5, 200)) < 0.7
    assert found(same, same) == bootstrap.Difference(0.0, 0.0, 1.0)


def test_a_clear_difference_and_its_mirror():
    stream = np.random.default_rng(0)
    ours, theirs = stream.random((5, 400)) < 0.8, stream.random((5, 400)) < 0.6
    one, other = found(ours, theirs), found(theirs, ours)
    assert one.p_value < 0.001
    assert one.low < (ours.mean() - theirs.mean()) < one.high
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))


def test_a_lucky_seed_is_no_difference():
    """One seed of five right on every sample: 20 points on the test split, in one run."""
    theirs = np.zeros((5, 300), bool)
    ours = theirs.copy()
    ours[2] = True
    lucky = found(ours, theirs)
    assert lucky.low < 0
    assert lucky.p_value > 0.2


def test_the_less_sure_of_two_tests_counts():
    """Three seeds 4, 5 and 6 points better: by the t-test 5 ± 4.303 · 1 / √3 points.

    Where all seeds are better by the same 20 of 400 samples, only the bootstrap knows that these
    are few: 5 ± 1.96 · √(.05 · .95 / 400) points.
    """
    theirs = np.zeros((3, 2000), bool)
    ours = theirs.copy()
    for seed, count in enumerate((80, 100, 120)):
        ours[seed, :count] = True
    few = found(ours, theirs)
    assert (few.low, few.high) == pytest.approx((0.02516, 0.07484), abs=1e-5)
    assert few.p_value == pytest.approx(stats.ttest_1samp([0.04, 0.05, 0.06], 0).pvalue)
    alike = np.zeros((3, 400), bool)
    alike[:, :20] = True
    shared = found(alike, np.zeros((3, 400), bool))
    assert (shared.low, shared.high) == pytest.approx((0.0286, 0.0714), abs=0.003)
    assert shared.p_value < 0.001


def tables(stream, *, seeds, samples, spread):
    """Two methods that are equal in truth: right or wrong by sample, by method and by run."""
    ease = stream.normal(1.2, 2, samples)
    for _ in range(2):
        taste, luck = stream.normal(0, 0.5, samples), stream.normal(0, spread, (seeds, 1))
        noise = stream.logistic(size=(seeds, samples))
        yield ease + taste + luck + noise > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "samples", "spread"),
    [(2, 500, 0.3), (3, 2000, 0.3), (5, 240, 0.8), (5, 300, 0.05), (5, 300, 0.3)],
)
def test_it_holds_its_level(seeds, samples, spread):
    """Of 200 comparisons without a difference at most one in twenty is called one, by chance 19.

    Over the test samples alone, by a paired t of their means, it is more, where seeds differ by
    far more.
    """
    stream = np.random.default_rng(0)
    called, alone = 0, 0
    for _ in range(200):
        ours, theirs = tables(stream, seeds=seeds, samples=samples, spread=spread)
        called += found(ours, theirs).p_value < 0.05
        apart = (ours.astype(float) - theirs).mean(0)
        alone += stats.ttest_1samp(apart, 0).pvalue < 0.05
    assert called <= 19
    if spread > 0.2:
        assert alone > 40
