"""Every method has the criterion that it is given, with class weights and without."""

import math
from functools import cache

import pytest
import torch
from torch import nn

import evenly
from evenly import METHODS
from support import CASES, CLASSES, Run, each, forward, net

WEIGHT = torch.tensor([1.0, 2.0, 4.0])
CRITERIA = {
    "class weights": lambda: evenly.CrossEntropy(WEIGHT),
    "label smoothing": lambda: evenly.CrossEntropy(WEIGHT, label_smoothing=0.1),
    "focal": lambda: evenly.Focal(2.0, WEIGHT),
    "all alike": lambda: evenly.CrossEntropy(torch.full((CLASSES,), 3.0)),
}
SINGLE = [case for case in CASES if "+" not in case]


def losses(case, criterion=None, epochs=3):
    """Of each step of a training."""
    run = Run(case) if criterion is None else Run(case, criterion=criterion)
    found = []
    note = run.method.loss

    def loss(output, target):
        found.append(note(output, target))
        return found[-1]

    run.method.loss = loss
    run.train(epochs)
    return torch.stack(found).detach()


@cache
def usual(case, name=None):
    """Those of its own criterion, or of one by its name, which several tests compare with."""
    # ReconBoost's first epoch boosts one modality, without the criterion.
    epochs = 2 if case == "reconboost" else 1
    return losses(case, CRITERIA[name]() if name else None, epochs)


@pytest.mark.parametrize("case", each(SINGLE))
def test_a_method_has_the_class_weights_it_is_given(case):
    assert not torch.allclose(usual(case, "class weights"), usual(case))


@pytest.mark.parametrize("name", ["label smoothing", "focal"])
@pytest.mark.parametrize("case", each(SINGLE))
def test_a_method_has_the_criterion_it_is_given(case, name):
    """Which has class weights as well."""
    if case.startswith("tcmax") and name == "focal":
        with pytest.raises(ValueError, match=r"TCMax replaces .* the focal loss does not have"):
            Run(case, criterion=CRITERIA[name]())
        return
    found, weighted = losses(case, CRITERIA[name]()), usual(case, "class weights")
    assert found.isfinite().all()
    assert not torch.allclose(found[: len(weighted)], weighted)


@pytest.mark.parametrize("case", each(SINGLE))
def test_equal_weights_of_any_size_change_nothing(case):
    """A weighted mean divides by the sum of weights: whoever takes it apart must do so, too."""
    found = usual(case, "all alike")
    torch.testing.assert_close(found, usual(case), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (evenly.CrossEntropy(WEIGHT), nn.CrossEntropyLoss(WEIGHT)),
        (evenly.CrossEntropy(label_smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (evenly.Focal(0.0, WEIGHT), nn.CrossEntropyLoss(WEIGHT)),
    ],
)
def test_joint_training_has_torchs_loss(ours, theirs):
    torch.testing.assert_close(losses("joint", ours), losses("joint", theirs))


def test_weights_of_classes_are_as_many_samples_to_joint_training():
    """Weights 2 and 1 are each sample of the first class twice."""
    model = net().eval()
    run = Run("joint")
    output, target = forward(model, next(iter(run.train_loader)))
    weighed = evenly.Method(criterion=evenly.CrossEntropy(torch.tensor([2.0, 1.0, 1.0])))
    twice = torch.cat([torch.arange(len(target)), (target == 0).nonzero().flatten()])
    expected = nn.functional.cross_entropy(output.logits[twice], target[twice])
    assert float(weighed.loss(output, target).detach()) == pytest.approx(
        float(expected.detach()), rel=1e-5
    )


def test_blending_weighs_the_means_of_whole_splits():
    """G-Blending's losses before a trial are those of the criterion on all rows at once."""
    criterion = evenly.CrossEntropy(WEIGHT)
    run = Run("g_blending", criterion=criterion)
    run.model.eval()
    before = run.method._losses(run.probe)
    for number, loader in enumerate((run.train_loader, run.val_loader)):
        pairs = [forward(run.model, batch) for batch in loader]
        logits = torch.cat([output.logits for output, _ in pairs])
        expected = criterion(logits.detach(), torch.cat([target for _, target in pairs]))
        assert before["fused"][number] == pytest.approx(float(expected), rel=1e-4)


def test_tcmax_replaces_the_partition_of_each_sample_as_it_counts():
    """L = Σ w_i (log Z - z_i[y_i]) / Σ w, worked out pairing by pairing."""
    run = Run("tcmax", criterion=evenly.CrossEntropy(WEIGHT))
    output, target = forward(run.model.eval(), next(iter(run.train_loader)))
    one, other = output.unimodal.values()
    rest = output.logits - one - other
    sums = [
        (one[j] + other[k] + rest[m]).exp().sum()
        for j in range(len(one))
        for k in range(len(one))
        for m in range(len(one))
    ]
    partition = math.log(float(torch.stack(sums).detach().mean()))
    weight = WEIGHT[target]
    true = output.logits.gather(1, target[:, None])[:, 0]
    expected = float((weight * (partition - true.detach())).sum() / weight.sum())
    assert float(run.method.loss(output, target).detach()) == pytest.approx(expected, rel=1e-4)


def test_every_method_is_tested_here():
    assert set(METHODS) <= {case.partition("(")[0] for case in SINGLE}
