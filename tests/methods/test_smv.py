import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import evenly
from evenly.diagnosis.contribution import shapley, subsets
from evenly.methods import SMV
from evenly.methods.smv import copies, options, shares, values
from evenly.nn import LateFusion
from support import NAMES, Run, Toy, forward, loaders, net, samples, sgd, train


def by_orders(value, count):
    """The Shapley value by its definition: the mean gain of m over all orders of arrival."""
    orders = list(itertools.permutations(range(count)))
    found = torch.zeros(count, value.shape[1], dtype=torch.float64)
    for order in orders:
        s = 0
        for m in order:
            found[m] += (value[s | 1 << m] - value[s]) / len(orders)
            s |= 1 << m
    return found


class TestFormulas:
    @pytest.mark.parametrize("right", list(itertools.product([0, 1], repeat=3)))
    def test_two_modalities_as_in_the_paper(self, right):
        """φ_1 = ½ (v(1) + v(1,2) - v(2)), where both together are worth 2."""
        first, second, both = right
        value = dict(
            zip(subsets("ab"), torch.tensor([0.0, first, second, 2.0 * both]), strict=True)
        )
        found = shapley(value, "ab")
        assert found["a"].item() == (first + 2 * both - second) / 2
        assert found["b"].item() == (second + 2 * both - first) / 2

    def test_copies_by_the_released_thresholds(self):
        """-½ comes three times more, 0 twice, ½ once; 1 and 1½ not."""
        assert copies(torch.tensor([[-0.5, 0.0, 0.5, 1.0, 1.5]])).tolist() == [[3, 2, 1, 0, 0]]

    def test_copies_for_more_modalities_fall_as_the_contribution_grows(self):
        contribution = torch.tensor([[-1.0, -0.4, 1 / 6, 1 / 3, 2 / 3, 0.76, 4 / 3]])
        assert copies(contribution).tolist() == [[4, 3, 2, 1, 1, 0, 0]]
        # what rounding leaves of ¾ is not what decides
        quarter = torch.tensor([[0.75 - 1e-12, 0.75, 0.75 + 1e-12]], dtype=torch.float64)
        assert copies(quarter).tolist() == [[1, 1, 1]]

    def test_shares_by_hand(self):
        mean = torch.tensor([0.9, 0.3], dtype=torch.float64)
        assert shares(mean, 0.5).tolist() == pytest.approx([0, 2 / 3 * 0.5 * 0.6])
        assert shares(torch.tensor([0.5, 0.2, 0.8]), 1.0).tolist() == pytest.approx([0.2, 0.4, 0.0])


class Given(nn.Module):
    """Takes its features as they come."""

    def __init__(self, width):
        super().__init__()
        self.out_features = width
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


def given(count=3, names=NAMES[:2], seed=0):
    """A model whose features are its inputs, and a batch with targets."""
    torch.manual_seed(seed)
    model = LateFusion({name: Given(4) for name in names}, 3).double()
    inputs = {name: 4 * torch.randn(count, 4, dtype=torch.float64) for name in names}
    return model, inputs, torch.arange(count) % 3


def logits_by_hand(model, inputs, keep, i):
    """W [f_1 .. f_M] + b of one sample, the features of others than `keep` being zeros."""
    row = torch.cat(
        [x[i] if name in keep else torch.zeros(4).double() for name, x in inputs.items()]
    )
    return model.head.linear.weight @ row + model.head.linear.bias


class TestValues:
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_by_hand(self, count):
        """v is |S| for a right prediction, not 1; features are zeroed, not inputs."""
        names = NAMES[:count]
        model, inputs, target = given(20, names)
        found = values(model(inputs), target, names)
        for i in range(20):
            for s in range(2**count):
                keep = [name for m, name in enumerate(names) if s >> m & 1]
                right = bool(keep) and int(logits_by_hand(model, inputs, keep, i).argmax()) == int(
                    target[i]
                )
                assert found[i, s].item() == len(keep) * right
        assert sorted(found.unique().tolist()) == list(range(count + 1))

    def test_anew_for_every_batch(self):
        """The trap: the values of the first batch kept for all others."""
        model, inputs, target = given(20)
        whole = values(model(inputs), target, NAMES[:2])
        parts = []
        for rows in torch.arange(20).split(6):
            part = {name: x[rows] for name, x in inputs.items()}
            parts.append(values(model(part), target[rows], NAMES[:2]))
        assert torch.equal(torch.cat(parts), whole)
        assert not torch.equal(parts[0], parts[1])

    def test_the_prediction_is_the_heads_own(self):
        """Of all modalities together it is `Output.logits`, whatever the inference rule."""
        model, inputs, target = given(5)
        output = model(inputs)
        other = evenly.Output(
            nn.functional.one_hot((target + 1) % 3, 3).double(), output.features, fuse=output.fuse
        )
        assert values(other, target, NAMES[:2])[:, 3].tolist() == [0] * 5


def made(level="sample", count=36, names=NAMES[:2], **settings):
    model = net(names)
    loader, val = loaders(names, count)
    method = SMV(
        model.encoders, sampler=loader.batch_sampler.sampler, level=level, warmup=1, **settings
    )
    return model, method, evenly.Probe(model, forward, loader, val), loader


def reads_a_alone(level, **settings):
    """A trained model whose head has no weights for 'aa'."""
    model, method, probe, data = made(level, **settings)
    train(model, evenly.Method(), sgd(model), 6)
    with torch.no_grad():
        model.head.linear.weight[:, 6:] = 0
    return model, method, probe, data


def contributions(model, data, names):
    """By hand: one sample at a time, each subset on its own."""
    model.eval()
    found = {}
    for i in range(len(data)):
        inputs = {name: x[i : i + 1] for name, x in data.inputs.items()}
        features = {name: model.encoders[name](x) for name, x in inputs.items()}
        value = torch.zeros(2 ** len(names), 1, dtype=torch.float64)
        for s in range(1, 2 ** len(names)):
            keep = [name for m, name in enumerate(names) if s >> m & 1]
            row = torch.cat([features[n] * (n in keep) for n in names], dim=1)
            right = int(model.head.linear(row).argmax()) == int(data.target[i])
            value[s] = len(keep) * right
        found[i] = by_orders(value, len(names))[:, 0].tolist()
    return found


class TestSampleLevel:
    @pytest.mark.parametrize("count", [2, 3])
    def test_the_pool_holds_each_sample_and_its_copies(self, count):
        names = NAMES[:count]
        model, method, probe, loader = made(names=names)
        method.before_epoch(1, probe)
        expected = list(range(36))
        for i, found in contributions(model, loader.dataset, names).items():
            for m, phi in enumerate(found):
                expected += [i + (m + 1) * 36] * max(0, int(2 * (1 - phi) + 0.5 + 1e-9))
        assert sorted(method.sampler.pool.tolist()) == sorted(expected)
        assert len(expected) > 36

    def test_copies_keep_the_modality_that_contributed_little(self):
        """A model that reads 'a' alone: samples come again with 'aa' alone, never with 'a'."""
        model, method, probe, loader = reads_a_alone("sample")
        method.before_epoch(1, probe)
        found = contributions(model, loader.dataset, NAMES[:2])
        right = [i for i, phi in found.items() if phi[0] >= 1 > phi[1]]
        assert len(right) > len(found) / 2  # 'a' is the clear modality
        variants = method.pool // 36
        for i in right:
            mine = variants[method.pool % 36 == i].tolist()
            assert 1 not in mine
            assert mine.count(2) == round(2 * (1 - found[i][1])) > 0

    def test_metrics(self):
        model, method, probe, loader = made()
        method.before_epoch(1, probe)
        found = torch.tensor(list(contributions(model, loader.dataset, NAMES[:2]).values()))
        for m, name in enumerate(NAMES[:2]):
            assert float(method.metrics[f"contribution/{name}"]) == pytest.approx(
                float(found[:, m].mean())
            )
            added = int((method.pool // 36 == m + 1).sum())
            assert float(method.metrics[f"resampled/{name}"]) == pytest.approx(added / 36)


class TestModalityLevel:
    def test_only_the_weaker_modality_comes_again(self):
        """The trap: copies of the stronger modality too."""
        model, method, probe, loader = reads_a_alone("modality", part_ratio=1.0)
        method.before_epoch(1, probe)
        phi = torch.tensor(list(contributions(model, loader.dataset, NAMES[:2]).values())).mean(0)
        gap = (1 - phi).tolist()
        count = int(2 / 3 * abs(gap[0] - gap[1]) * 36)
        assert count > 0
        assert gap[1] > gap[0]
        assert method.pool[:36].tolist() == list(range(36))
        assert len(method.pool) == 36 + count
        assert (method.pool[36:] // 36 == 2).all()

    def test_alpha_scales_it(self):
        sizes = []
        for alpha in (0.0, 0.5, 1.0):
            _, method, probe, _ = reads_a_alone("modality", part_ratio=1.0, alpha=alpha)
            method.before_epoch(1, probe)
            sizes.append(0 if method.pool is None else len(method.pool) - 36)
        assert sizes[0] == 0
        assert sizes[1] == pytest.approx(sizes[2] / 2, abs=1)
        assert sizes[2] > 1

    def test_valued_on_a_part_drawn_anew_each_epoch(self):
        seen = []

        def watching(model, batch):
            seen.append(batch[2].tolist())
            return forward(model, batch)

        model, method, probe, loader = made("modality")
        probe = evenly.Probe(model, watching, loader, loader)
        for epoch in (1, 2):
            method.before_epoch(epoch, probe)
            seen.append(None)
        cut = seen.index(None)
        first, second = itertools.chain(*seen[:cut]), itertools.chain(*seen[cut + 1 : -1])
        first, second = list(first), list(second)
        assert len(first) == len(second) == 8  # a fifth of 36, rounded up
        assert first != second


def stand_in(method, pool):
    """What a look would have found of the 36 samples of the training split."""
    method.samples, method.pool = samples(36), pool


class TestVariants:
    def test_options_by_hand(self):
        variant, start, times = options(torch.tensor([0, 1, 2, 3 + 2, 6 + 0, 3 + 0, 6 + 2]), 3)
        assert times.tolist() == [3, 1, 3]
        assert start.tolist() == [0, 3, 4]
        assert variant.tolist() == [0, 2, 1, 0, 0, 1, 2]

    def test_a_sample_is_each_of_its_copies_equally_often(self):
        """Sample 0 stands in the pool whole, and three times with 'aa' alone."""
        _, method, _, _ = made()
        stand_in(method, torch.tensor([*range(36), 72, 72, 72, 1 + 36]))
        seen = []
        for _ in range(800):
            seen.append(method._variant(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2])))
            method.before_step()
        share = [torch.stack(seen)[:, i].bincount(minlength=3) / 800 for i in range(3)]
        for found, expected in zip(share, ([0.25, 0, 0.75], [0.5, 0.5, 0], [1, 0, 0]), strict=True):
            assert found.tolist() == pytest.approx(expected, abs=0.06)

    def test_modality_level_draws_among_all_copies(self):
        _, method, _, _ = made("modality")
        method.pool = torch.tensor([*range(36), *range(72, 84)])
        drawn = method._variant(torch.arange(10_000) * 7 - 5, torch.zeros(10_000))
        assert (drawn.bincount(minlength=3) / 10_000).tolist() == pytest.approx(
            [0.75, 0, 0.25], abs=0.02
        )

    def test_a_batch_cut_otherwise_is_the_same(self):
        _, method, _, _ = made()
        stand_in(method, torch.tensor([*range(36), *range(36, 108)]))
        index, target = torch.randperm(36), Toy(36).target
        whole = method._variant(index, target[index])
        parts = [method._variant(i, target[i]) for i in index.split(5)]
        assert torch.equal(whole, torch.cat(parts))
        assert set(whole.tolist()) == {0, 1, 2}


class TestLoss:
    def batch(self):
        model, method, _, _ = made()
        inputs, target, _ = next(iter(DataLoader(Toy(6), 6)))
        model.eval().double()
        stand_in(method, torch.arange(36))
        inputs = {name: x.double() for name, x in inputs.items()}
        return model, method, inputs, target

    def test_golden(self):
        """The mean over samples of CE, each with the modalities of its entry in the pool."""
        model, method, inputs, target = self.batch()
        pool = torch.arange(36)
        pool[:6] += torch.tensor([0, 0, 36, 36, 72, 72])
        stand_in(method, pool)
        loss = method.loss(model(inputs, torch.arange(6)), target)
        expected = torch.zeros((), dtype=torch.float64)
        for i, keep in enumerate(("a aa", "a aa", "a", "a", "aa", "aa")):
            row = torch.cat(
                [
                    model.encoders[name](inputs[name][i : i + 1]) * (name in keep.split())
                    for name in NAMES[:2]
                ],
                dim=1,
            )
            z = model.head.linear(row)
            expected = expected + nn.functional.cross_entropy(z, target[i : i + 1]) / 6
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        mine = torch.autograd.grad(loss, list(model.parameters()))
        theirs = torch.autograd.grad(expected, list(model.parameters()))
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)

    def test_a_sample_trains_nothing_of_the_modality_it_lacks(self):
        model, method, inputs, target = self.batch()
        stand_in(method, torch.arange(36) + 72)
        method.loss(model(inputs, torch.arange(6)), target).backward()
        assert all((p.grad == 0).all() for p in model.encoders["a"].parameters())
        assert any((p.grad != 0).any() for p in model.encoders["aa"].parameters())

    def test_a_validations_positions_are_not_read(self):
        model, method, inputs, target = self.batch()
        stand_in(method, torch.arange(36) + 36)
        output = model(inputs, torch.arange(6) + 100)
        with torch.no_grad():
            found = method.loss(output, target)
        assert torch.equal(found, nn.functional.cross_entropy(output.logits, target))


def test_the_warm_up_is_joint_training():
    _, method, probe, _ = made()
    method.pool = torch.arange(3)  # of a run before
    method.before_epoch(0, probe)
    assert method.pool is None
    assert [SMV(net().encoders, sampler=method.sampler).is_due(n) for n in (4, 5)] == [False, True]


def test_one_modality_is_left_alone():
    _, method, probe, _ = made(names=("a",))
    method.before_epoch(3, probe)
    assert method.pool is None


def test_the_sampler_of_a_resumed_run_has_the_pool():
    _, method, probe, _ = made()
    method.before_epoch(1, probe)
    _, fresh, _, _ = made()
    fresh.load_state_dict(method.state_dict())
    assert torch.equal(fresh.sampler.pool, method.sampler.pool)
    assert list(fresh.sampler) == list(method.sampler)


def test_epochs_keep_their_length():
    _, method, probe, loader = made()
    before = len(loader)
    method.before_epoch(1, probe)
    assert len(method.pool) > 36
    assert sum(len(batch[1]) for batch in loader) == 36
    assert len(loader) == before


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"warmup": -1}, r"SMV: 'warmup' must be not negative; found -1"),
        ({"alpha": -0.5}, r"SMV: 'alpha' must be not negative; found -0\.5"),
        ({"part_ratio": 0.0}, r"SMV: 'part_ratio' must be above 0 and at most 1; found 0\.0"),
        ({"part_ratio": 1.5}, r"SMV: 'part_ratio' must be above 0 and at most 1; found 1\.5"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(ValueError, match=text):
        SMV(net().encoders, sampler=evenly.Resampler(Toy(3), 1, 0), **settings)


def test_a_loader_that_draws_from_another_sampler_is_refused():
    run = Run("smv")
    run.method.sampler = evenly.Resampler(run.train_loader.dataset, 1, 0)
    with pytest.raises(ValueError, match="the training loader does not draw from its sampler"):
        run.train(1)
