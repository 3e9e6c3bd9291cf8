import math

import pytest
import torch

from evenly.data.tasks import Classes
from evenly.lab.run.evaluation import Evaluation
from evenly.lab.run.measures import measures
from evenly.lab.run.settings import Training
from evenly.metrics import METRICS, Metric
from evenly.output import Output

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
TARGET = torch.tensor([1, 2, 0])


def top(answers, target, k=1):
    return (answers.topk(k).indices == target[:, None]).any(1).float().mean()


top.metric = Metric("top-k accuracy")


def cost_of_all(answers, target):
    return 12.5


def accuracy(answers, target):
    return 0.0


def brier(answers, target):
    return 0.0


def probe(answers, target):
    return 0.0


def wide(answers, target):
    return answers


number = 5


def nested(answers, target):
    return 1.0


nested.metric = "nothing"


def test_a_metric_takes_probabilities_and_targets():
    own = measures("test_measures.top(k=2),test_measures.cost_of_all")
    evaluation = Evaluation(Classes(("a", "b", "c")), own)
    evaluation.add(Output(LOGITS, {}), TARGET)
    found = evaluation.metrics()
    assert found["top"] == pytest.approx(2 / 3)  # classes 1 and 2 are among the likeliest two
    assert found["cost_of_all"] == 12.5
    assert found["accuracy"] == pytest.approx(1 / 3)


def test_how_it_is_shown():
    measures("test_measures.top,test_measures.cost_of_all")
    assert METRICS["top"] == Metric("top-k accuracy")
    assert METRICS["cost_of_all"] == Metric("cost of all", scale=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy", "there is a metric 'accuracy' already"),
        ("brier", "there is a metric 'brier' already"),  # of the test split alone
        ("probe", "there is a metric 'probe' already"),  # as probe/M
        ("top,test_measures.top(k=2)", "there is a metric 'top' already"),
        ("number", "of the type int. A metric is a function"),
        ("nested", "has a `metric` of the type str"),
    ],
)
def test_what_is_no_metric(text, message):
    with pytest.raises(ValueError, match=message):
        measures(f"test_measures.{text}")


def test_one_that_gives_no_number():
    evaluation = Evaluation(Classes(("a", "b", "c")), measures("test_measures.wide"))
    evaluation.add(Output(LOGITS, {}), TARGET)
    with pytest.raises(
        ValueError, match=r"the metric 'wide' fails .* predicted, \(3, 3\), .* \(3,\)"
    ):
        evaluation.metrics()


def undefined(answers, target):
    return float("nan")


def endless(answers, target):
    return -float("inf")


def test_one_may_be_undefined_and_not_infinite():
    evaluation = Evaluation(Classes(("a", "b", "c")), measures("test_measures.undefined"))
    evaluation.add(Output(LOGITS, {}), TARGET)
    assert math.isnan(evaluation.metrics()["undefined"])
    evaluation.own = measures("test_measures.endless")
    with pytest.raises(ValueError, match=r"the metric 'endless' is infinite.* or return NaN"):
        evaluation.metrics()


def test_it_may_select():
    assert Training(metrics="test_measures.top(k=2)", select="top").select == "top"
    with pytest.raises(ValueError, match=r"unknown metric 'top'\. .*the name of one of --metrics"):
        Training(select="top")
    with pytest.raises(ValueError, match=r"--metrics takes import paths, .* found 'accuracy'"):
        Training(metrics="accuracy")
