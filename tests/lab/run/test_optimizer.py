import pytest
import torch
from torch import nn

from evenly.lab.run.optimizer import optimizer_of
from evenly.optimizers import divides_size, rebuilt


def made(text, weight_decay=0.0, lr=0.1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, optimizer_of(text, model.parameters(), lr, weight_decay)


def trained(model, optimizer, steps=5):
    stream = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model(torch.randn(8, 3, generator=stream)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


NAMES = "adadelta adafactor adagrad adam adamax adamw asgd muon nadam radam rmsprop rprop sgd"


@pytest.mark.parametrize("name", NAMES.split())
def test_every_optimiser_trains_and_can_be_made_again(name):
    before = torch.cat([p.detach().flatten() for p in made(name)[0].parameters()])
    model, optimizer = made(name)
    again = rebuilt(optimizer, optimizer.param_groups)
    after = trained(model, optimizer)
    assert after.isfinite().all()
    assert not torch.equal(before, after)
    assert type(again) is type(optimizer)
    assert again.defaults == optimizer.defaults


def test_settings_are_passed_on():
    _, optimizer = made("adamw(betas=[0.9,0.98],eps=1e-6)", weight_decay=0.25)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["betas"] == (0.9, 0.98)
    assert (optimizer.defaults["eps"], optimizer.defaults["weight_decay"]) == (1e-6, 0.25)


def test_sgd_keeps_its_momentum():
    assert made("sgd(nesterov=true)")[1].defaults["momentum"] == 0.9
    assert made("sgd(momentum=0)")[1].defaults["momentum"] == 0.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adamv", r"unknown optimiser 'adamv'\. Did you mean adam"),
        ("sgd(nestrov=true)", r"unknown setting 'nestrov' of sgd\. Did you mean nesterov\?"),
        ("sgd(maximize=true)", "unknown setting 'maximize' of sgd"),
        ("sgd(lr=0.5)", r"set 'lr' by its own option, --lr 0\.5\."),
        ("adam(betas=0.9)", r"adam: betas takes a list \[a number, a number\], found 0\.9"),
        ("sgd(momentum=-1)", r"sgd\(momentum=-1\) cannot be built: Invalid momentum value: -1"),
        (
            "muon(momentum=1)",
            "muon.* cannot be built: momentum must be at least 0 and below 1, found 1",
        ),
        ("muon(ns_steps=0)", "ns_steps must be from 1 to 99, found 0"),
        ("muon(adjust_lr_fn=x)", "takes 'match_rms_adamw' or 'original', found 'x'"),
        ("lbfgs", "lbfgs evaluates the loss several times in a step"),
        ("sparseadam", "sparseadam takes only sparse gradients"),
        ("sgd(", "does not close"),
    ],
)
def test_what_cannot_be(text, message):
    with pytest.raises(ValueError, match=message):
        made(text)


def test_no_weight_decay():
    with pytest.raises(ValueError, match=r"rprop has no weight decay\. Give --weight-decay 0\."):
        made("rprop", weight_decay=1e-4)


class TestMuon:
    def test_equals_torchs_two(self):
        found = trained(*made("muon(momentum=0.8,betas=[0.8,0.9])", weight_decay=0.1))
        model, _ = made("sgd")
        matrices = [p for p in model.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if p.ndim != 2]
        muon = torch.optim.Muon(matrices, 0.1, 0.1, 0.8, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(others, 0.1, (0.8, 0.9), weight_decay=0.1)
        adamw.register_step_pre_hook(lambda *_: muon.step())
        adamw.register_step_post_hook(lambda *_: muon.zero_grad())
        assert torch.equal(found, trained(model, adamw))

    def test_goes_on_from_its_state(self):
        model, optimizer = made("muon")
        whole = trained(model, optimizer, 1), trained(model, optimizer, 1)
        again, other = made("muon")
        trained(again, other, 1)
        new = optimizer_of("muon", again.parameters(), 0.1, 0.0)
        new.load_state_dict(other.state_dict())
        assert torch.equal(trained(again, new, 1), whole[1])

    def test_divides_out_the_size_of_gradients(self):
        assert divides_size(made("muon")[1])
