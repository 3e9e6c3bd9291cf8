"""Sentences of small tables, each written out by hand."""

import pytest

from evenly.diagnosis.verdict import THERE
from evenly.lab.statistics.tables import summary
from evenly.report.finding import CLEAR
from evenly.report.finding import what_was_found as sentences


def what_was_found(rows):
    return " ".join(sentences(rows))


def row(
    method, mean, difference=None, p=None, metric="accuracy", seeds=5, split="test", pairs=None
):
    return {
        "method": method,
        "split": split,
        "metric": metric,
        "mean": mean,
        "seeds": seeds,
        "pairs": seeds if pairs is None else pairs,
        "difference": difference,
        "p_holm": p,
    }


JOINT = row("joint", 0.9)


def test_nothing_has_finished():
    assert what_was_found([]) == ""
    assert what_was_found([row("joint", 0.9, split="val")]) == ""


def test_one_method():
    assert what_was_found([JOINT]) == "Joint training reaches accuracy 90.0 %."


def test_nothing_differs():
    rows = [JOINT, row("relearn", 0.92, 0.02, 0.3), row("pmr", 0.88, -0.02, 0.05)]
    assert what_was_found(rows) == (
        "No method differs significantly from joint training (accuracy 90.0 %); relearn has the "
        "best mean, 92.0 %."
    )
    assert what_was_found([JOINT, row("pmr", 0.88, -0.02, None)]) == (
        "No method differs significantly from joint training, which has the best mean (accuracy "
        "90.0 %)."
    )


def test_one_is_better():
    rows = [row("relearn", 0.931, 0.031, 0.049), JOINT, row("pmr", 0.91, 0.01, 0.2)]
    assert what_was_found(rows) == (
        "relearn is better than joint training: accuracy 93.1 %, joint training 90.0 %."
    )


def test_one_is_better_and_another_has_the_best_mean():
    rows = [row("pmr", 0.95, 0.05, 0.2), row("relearn", 0.93, 0.03, 0.01), JOINT]
    assert what_was_found(rows) == (
        "relearn is better than joint training: accuracy 93.0 %, joint training 90.0 %. pmr has "
        "the best mean, 95.0 %, but does not differ significantly from joint training."
    )


def test_some_are_better_and_some_worse():
    better = [row(name, 0.95 - 0.01 * k, 0.04, 0.01) for k, name in enumerate(("a", "b", "c"))]
    worse = [row(f"w{k}", 0.8 - 0.01 * k, -0.1, 0.01) for k in range(5)]
    assert what_was_found([JOINT, *worse, *better]) == (
        "a is better than joint training: accuracy 95.0 %, joint training 90.0 %. b and c are also "
        "better. w0, w1, w2 and 2 others are worse than joint training."
    )


def test_one_is_worse():
    assert what_was_found([JOINT, row("ogm", 0.8, -0.1, 0.001)]) == (
        "No method is better than joint training, which has the best mean (accuracy 90.0 %). ogm "
        "is worse than joint training."
    )


@pytest.mark.parametrize(("seeds", "said"), [(1, "1 seed is"), (2, "2 seeds are")])
def test_too_few_seeds(seeds, said):
    rows = [row("joint", 0.9, seeds=seeds), row("pmr", 0.95, 0.05, seeds=seeds)]
    assert what_was_found(rows) == (
        "pmr has the best mean (accuracy 95.0 %, joint training 90.0 %), but "
        f"{said} too few to tell whether methods differ."
    )
    alone = row("unimodal(modality=audio)", 0.99, 0.09, seeds=seeds)
    assert what_was_found([*rows, alone]).endswith(
        "audio alone has a better mean than joint training, 99.0 %, but too few seeds to tell."
    )


@pytest.mark.parametrize(
    ("pairs", "said"),
    [(0, "0 shared seeds are"), (1, "1 shared seed is"), (2, "2 shared seeds are")],
)
def test_too_few_shared_seeds(pairs, said):
    """Five each, but few in common."""
    rows = [JOINT, row("pmr", 0.95, 0.05, pairs=pairs)]
    assert what_was_found(rows) == (
        "pmr has the best mean (accuracy 95.0 %, joint training 90.0 %), but "
        f"{said} too few to tell whether methods differ."
    )


def test_one_of_two_shares_too_few_seeds():
    rows = [row("pmr", 0.95, 0.05, pairs=2), JOINT, row("ogm", 0.89, -0.01, 0.4)]
    assert what_was_found(rows) == (
        "No method differs significantly from joint training (accuracy 90.0 %); pmr has the best "
        "mean, 95.0 %."
    )
    alone = row("unimodal(modality=audio)", 0.8, -0.1, 0.001)
    assert "2 shared seeds are too few" in what_was_found([*rows[:2], alone])
    alone = row("unimodal(modality=audio)", 0.99, 0.09, pairs=2)
    assert what_was_found([*rows, alone]).endswith(
        "audio alone has a better mean than joint training, 99.0 %, but too few seeds to tell."
    )


def test_a_modality_alone():
    rows = [JOINT, row("pmr", 0.89, -0.01, 0.4)]
    begin = (
        "No method differs significantly from joint training, which has the best mean (accuracy "
        "90.0 %). "
    )
    for mean, p, said in (
        (0.95, 0.01, "audio alone is better than joint training: 95.0 %, joint training 90.0 %."),
        (0.95, 0.2, "audio alone has a better mean than joint training, 95.0 %, but the "
                    "difference is not significant."),
        (0.70, 0.01, "No modality alone is better: the best, audio, reaches 70.0 %."),
    ):  # fmt: skip
        audio = row("unimodal(modality=audio)", mean, mean - 0.9, p)
        visual = row("unimodal(modality=visual)", 0.5, -0.4, 0.01)
        assert what_was_found([*rows, visual, audio]) == begin + said


def contributing(audio, visual, half=None, seeds=5):
    """What is said of two contributions, of which `half` is the half of the interval."""
    ends = (
        [{}, {}] if half is None else [{"low": x - half, "high": x + half} for x in (audio, visual)]
    )
    worth = [
        row("joint", audio, metric="contribution/audio", seeds=seeds) | ends[0],
        row("joint", visual, metric="contribution/visual", seeds=seeds) | ends[1],
        row("pmr", 0.9, metric="contribution/visual"),
    ]
    return what_was_found([JOINT, *worth]).removeprefix("Joint training reaches accuracy 90.0 %. ")


def test_the_modality_that_carries_the_prediction():
    assert contributing(0.4, 0.2) == (
        "audio carries the prediction of joint training (40.0 points; visual 20.0)."
    )
    assert contributing(0.3, -0.02) == (
        "audio carries the prediction of joint training (30.0 points; visual -2.0)."
    )
    assert contributing(0.3, 0.31) == (
        "visual contributes most to joint training (31.0 points; audio 30.0)."
    )
    assert contributing(0.3, -0.12) == (
        "audio carries the prediction of joint training (30.0 points); visual costs 12.0 points."
    )


@pytest.mark.parametrize(
    ("audio", "visual", "said"),
    [
        (-0.138, 0.013, ": audio costs 13.8 points (visual 1.3 points)."),
        (-0.2, -0.1, ": audio costs 20.0 points and visual costs 10.0 points."),
        (0.0, -0.02, " (audio 0.0 points; visual -2.0)."),
        (0.0, 0.0, " (audio 0.0 points; visual 0.0)."),
    ],
)
def test_a_model_that_is_no_better_than_a_guess(audio, visual, said):
    begin = "Joint training is no better in accuracy than a guess without any input"
    assert contributing(audio, visual) == begin + said


def test_a_contribution_counts_by_its_interval_or_of_few_seeds_by_its_size():
    """The interval of one point is from -1 to 3, or from 0.5 to 1.5."""
    none = "No modality clearly contributes to the prediction of joint training ("
    assert contributing(0.002, 0.0, seeds=1) == f"{none}audio 0.2 points; visual 0.0)."
    assert contributing(0.01, 0.0, half=0.02) == f"{none}audio 1.0 points; visual 0.0)."
    assert contributing(0.01, 0.0, half=0.005).startswith("audio carries the prediction of joint")
    assert contributing(0.3, -0.01, half=0.005).endswith("; visual costs 1.0 points.")
    assert CLEAR == THERE


def test_an_error_that_a_modality_raises():
    """A guess has an error of 0.8 + 0.3 - 0.1 = 1, or 0.8 - 0.3 + 0.1."""
    joint = row("joint", 0.8, metric="mae")
    for text, au, said in (
        (0.3, -0.1, "text carries the prediction of joint training (0.300 of MAE); "
                    "au raises MAE by 0.100."),
        (0.3, -0.05, "text carries the prediction of joint training (0.300 of MAE; au -0.050)."),
        (0.05, 0.01, "No modality clearly contributes to the prediction of joint training "
                     "(text 0.050 of MAE; au 0.010)."),
        (0.1, -0.3, "Joint training is no better in MAE than a guess without any input: au raises "
                    "MAE by 0.300 (text 0.100 of MAE)."),
    ):  # fmt: skip
        worth = [
            row("joint", x, metric=f"contribution/{m}") for m, x in (("text", text), ("au", au))
        ]
        begin = "Joint training reaches MAE 0.800, lower is better. "
        assert what_was_found([joint, *worth]) == begin + said


def test_numbers():
    """A lower error is better."""
    joint = row("joint", 0.8, metric="mae")
    assert what_was_found(
        [joint, row("pmr", 0.7, -0.1, 0.01, "mae"), row("joint", 0.5, metric="rmse")]
    ) == ("pmr is better than joint training: MAE 0.700, lower is better, joint training 0.800.")
    worth = [row("joint", x, metric=f"contribution/{m}") for m, x in (("text", 0.3), ("au", 0.1))]
    assert what_was_found([joint, *worth]) == (
        "Joint training reaches MAE 0.800, lower is better. text carries the prediction of joint "
        "training (0.300 of MAE; au 0.100)."
    )


def test_several_labels():
    rows = [JOINT, row("pmr", 0.91, 0.01, 0.3), row("joint", 0.8, metric="micro_f1")]
    assert what_was_found(rows) == (
        "No method differs significantly from joint training (accuracy on whole label sets "
        "90.0 %); pmr has the best mean, 91.0 %."
    )
    worth = [row("joint", x, metric=f"contribution/{m}") for m, x in (("a", -0.1), ("b", -0.2))]
    assert what_was_found([JOINT, rows[-1], *worth]).endswith(
        " Joint training is no better in accuracy on whole label sets than a guess without any "
        "input: b costs 20.0 points and a costs 10.0 points."
    )


def test_without_the_reference():
    assert what_was_found([row("pmr", 0.9), row("ogm", 0.8)]) == (
        "pmr has the best mean: accuracy 90.0 %; joint training, the reference, is not "
        "among the methods."
    )


def test_one_modality_alone_is_all_there_is():
    assert what_was_found([row("unimodal(modality=a)", 0.5), row("unimodal(modality=b)", 0.6)]) == (
        "unimodal(modality=b) has the best mean: accuracy 60.0 %; joint training, the reference, "
        "is not among the methods."
    )


def test_the_rows_of_a_summary():
    results = [
        {"method": method, "seed": seed, "split": "test", "metric": "accuracy", "value": value}
        for method, values in {"joint": (0.5, 0.51, 0.52), "pmr": (0.7, 0.72, 0.71)}.items()
        for seed, value in enumerate(values)
    ]
    assert what_was_found(summary(results)) == (
        "pmr is better than joint training: accuracy 71.0 %, joint training 51.0 %."
    )
