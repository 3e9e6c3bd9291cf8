import pytest
import torch
from torch import nn

from evenly import Output
from evenly.methods import Ensemble, Unimodal
from evenly.nn.heads import EnsembleHead
from support import batch_of, loaders, net, sgd, train

NAMES = ("a", "aa", "b")
ENCODERS = {name: nn.Linear(2, 2) for name in NAMES}


def without_chance(names, head):
    model = net(names, head=head)
    for encoder in model.encoders.values():
        encoder[3] = nn.Identity()  # dropout, which draws for all modalities from one stream
    return model


def test_golden_loss():
    """The sum of the cross-entropies of the modalities' own logits, by hand."""
    model = net(NAMES, head="ensemble").double().eval()
    output, target = batch_of(model, count=6)
    expected = 0.0
    for name in NAMES:
        layer = model.head.heads[name]
        for i in range(6):
            z = layer.weight @ output.features[name][i] + layer.bias
            expected += float((z.exp().sum().log() - z[target[i]]).detach() / 6)
    found = Ensemble(model.encoders).loss(output, target).detach()
    assert float(found) == pytest.approx(expected, 1e-12)


def test_it_is_unimodal_models_trained_separately_and_averaged():
    together = without_chance(NAMES, "ensemble")
    alone = {name: without_chance((name,), "ensemble") for name in NAMES}
    for name, model in alone.items():
        model.encoders[name].load_state_dict(together.encoders[name].state_dict())
        model.head.heads[name].load_state_dict(together.head.heads[name].state_dict())
    train(together, Ensemble(together.encoders), sgd(together), 3, names=NAMES)
    inputs, _, index = next(iter(loaders(NAMES, count=12, batch=12)[1]))
    probability = []
    for name, model in alone.items():
        train(model, Unimodal(model.encoders, modality=name), sgd(model), 3, names=NAMES)
        trained = dict(together.encoders[name].named_parameters())
        for key, p in model.encoders[name].named_parameters():
            torch.testing.assert_close(p, trained[key], rtol=1e-5, atol=1e-6)
        output = model.eval()({name: inputs[name]}, index)
        probability.append(output.logits.softmax(1))
    found = together.eval()(inputs, index).logits
    torch.testing.assert_close(
        found.softmax(1), torch.stack(probability).mean(0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("task", "count", "criterion", "what"),
    [
        ("labels", 3, nn.BCEWithLogitsLoss(), "several labels per sample"),
        ("labels", 1, nn.BCEWithLogitsLoss(), "one logit for two classes"),
        ("number", 2, nn.L1Loss(), "regression targets"),
    ],
)
def test_of_other_targets_the_head_has_to_know(task, count, criterion, what):
    own, target = {name: torch.randn(5, count) for name in NAMES}, torch.rand(5, count).round()

    def loss(task):
        output = Output(EnsembleHead({}, count, task).combined(own), own, own)
        return float(Ensemble(ENCODERS, criterion=criterion).loss(output, target))

    assert loss(task) == pytest.approx(sum(float(criterion(z, target)) for z in own.values()))
    with pytest.raises(ValueError, match=rf"but the target is of {what}\. Make the head with"):
        loss("classes")


def test_no_encoder():
    with pytest.raises(ValueError, match="Ensemble: there is no encoder"):
        Ensemble({})
