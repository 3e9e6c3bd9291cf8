import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import evenly
from evenly.methods.umt import UMT
from evenly.teachers import squared_error
from many_ranks import on_ranks
from support import Run, Toy, forward, loaders, net, sgd, weights


def test_squared_error_by_hand():
    features = torch.tensor([[1.0, 2.0], [0.0, 4.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.0], [3.0, 3.0]])
    assert float(squared_error(features, teacher)) == (0 + 4 + 9 + 1) / 4


def alone(name, epochs, seed=0):
    """The features of one teacher: a model of that modality, trained by a plain loop."""
    model, dataset = straight(), Toy(36, seed=1)
    unimodal = nn.ModuleList([model.encoders[name], model.head.heads[name]])
    optimizer = sgd(unimodal)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        rows = torch.randperm(36, generator=order).tolist()
        for inputs, target, _ in DataLoader(dataset, 8, sampler=rows):
            optimizer.zero_grad()
            logits = model.head.heads[name](model.encoders[name](inputs[name]))
            nn.functional.cross_entropy(logits, target).backward()
            optimizer.step()
    return model.eval().encoders[name](dataset.inputs[name]).detach()


def straight():
    """Without dropout, whose mask depends on what else draws; BatchNorm tells the modes apart."""
    model = net(head="multi")
    for encoder in model.encoders.values():
        encoder[3] = nn.Identity()
    return model


def test_each_teacher_is_a_model_of_its_modality_trained_alone_and_seen_in_evaluation_mode():
    model = straight()
    method = UMT(model.encoders, optimizer=sgd(model), teacher_epochs=2)
    method.before_epoch(0, evenly.Probe(model, forward, *loaders()))
    for name in model.encoders:
        torch.testing.assert_close(method.teachers[f"features/{name}"], alone(name, 2))


def test_the_student_starts_where_the_teachers_started():
    """Weights, and BatchNorm's statistics, which a teacher left in training mode would change."""
    run = Run("umt")
    before = weights(run.model)
    run.method.before_epoch(0, run.probe)
    assert all(torch.equal(before[key], value) for key, value in weights(run.model).items())


def test_teachers_that_are_not_finite():
    run = Run("umt")

    def overflowing(model, batch):
        output, target = forward(model, batch)
        if not model.training:
            output.features["aa"][batch[2] == 7] = torch.inf
        return output, target

    probe = evenly.Probe(run.model, overflowing, run.train_loader, run.val_loader)
    with pytest.raises(
        ValueError, match=r"UMT: the features of the teacher of 'aa' .* sample 7 of"
    ):
        run.method.before_epoch(0, probe)
    assert run.method.teachers == {}


def test_half_precision_logits_that_add_up_to_more_than_it_holds():
    run = Run("umt").train(1)
    inputs, target, index = next(iter(run.train_loader))
    output = run.model(inputs, index)
    large = {name: torch.full_like(z, 6e4).half() for name, z in output.unimodal.items()}
    found = run.method.loss(replace(output, unimodal=large), target)
    assert torch.equal(found, run.method.loss(output, target))
    assert found.isfinite()


def test_teachers_are_seen_once_and_never_run_in_a_step():
    run = Run("umt").train(1)
    passes = []
    run.model.register_forward_hook(lambda *_: passes.append(1))
    run.train(3, start=1)
    assert len(passes) == 2 * len(run.train_loader)


def test_tables_come_back_from_a_checkpoint():
    run = Run("umt").train(1)
    file = io.BytesIO()
    torch.save(run.method.state_dict(), file)
    file.seek(0)
    fresh = Run("umt").method
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for key, table in run.method.teachers.items():
        assert torch.equal(fresh.teachers[key], table)


def test_a_run_that_starts_later_has_teachers_all_the_same():
    run = Run("umt")
    run.method.before_epoch(3, run.probe)
    assert set(run.method.teachers) == {"features/a", "features/aa"}


def test_a_loss_before_any_teacher():
    run = Run("umt")
    with pytest.raises(RuntimeError, match=r"UMT\.loss came before any teacher was trained"):
        run.method.loss(*forward(run.model, next(iter(run.train_loader))))


def tables(rank, world):
    model = straight()
    for encoder in model.encoders.values():
        encoder[1] = nn.Identity()
    probe = evenly.Probe(model, forward, *loaders(batch=8 // world))
    method = UMT(model.encoders, optimizer=sgd(model), teacher_epochs=2)
    method.before_epoch(0, probe)
    return method.teachers


@pytest.mark.distributed
def test_every_rank_holds_every_row(tmp_path: Path):
    one, two = on_ranks(tables, tmp_path)
    for key, table in tables(0, 1).items():
        assert torch.equal(one[key], two[key])
        assert len(table) == 36
        torch.testing.assert_close(one[key], table, rtol=1e-5, atol=1e-6)
