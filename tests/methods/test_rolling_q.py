import io
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import evenly
from evenly.methods.rolling_q import RollingQ, anchor, imbalance, rotation, shares
from evenly.nn.heads import RollingHead
from support import NAMES, Run, Toy, net


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


class TestFormulas:
    @pytest.mark.parametrize("rho", [0.0, 0.7, 5.0])
    @pytest.mark.parametrize(("one", "other"), [(0.9, -0.4), (0.1, 0.1), (-0.3, 0.2)])
    def test_shares_of_two_are_the_papers(self, one, other, rho):
        air = one - other
        expected = [0.5 * (1 + math.tanh(-rho * air)), 0.5 * (1 + math.tanh(rho * air))]
        assert shares(t(one, other), rho).tolist() == pytest.approx(expected, rel=1e-12)
        assert float(imbalance(t(one, other))) == abs(air)

    def test_shares_of_three(self):
        found = shares(t(0.5, 0.0, 0.5), 0.5 * math.log(4)).tolist()
        assert found == pytest.approx([0.25, 0.5, 0.25])
        assert float(imbalance(t(0.5, -0.2, 0.1))) == pytest.approx(0.7)

    def test_anchor_by_hand(self):
        keys = torch.tensor([[3.0, 4.0], [0.0, 0.1]])
        assert anchor(keys, torch.tensor([0.25, 0.75])).tolist() == pytest.approx([0.15, 0.95])

    def test_rotation_by_hand(self):
        found = rotation(t(2, 0, 0), t(0, 5, 0))
        assert found.tolist() == [[0, -1, 0], [1, 0, 0], [0, 0, 1]]

    @pytest.mark.parametrize("width", [2, 7, 64])
    def test_rotation(self, width):
        torch.manual_seed(width)
        query, goal, other = torch.randn(3, width, dtype=torch.float64)
        found = rotation(query, goal)
        close = {"rtol": 1e-10, "atol": 1e-12}
        torch.testing.assert_close(found @ found.T, torch.eye(width).double(), **close)
        assert float(torch.linalg.det(found)) == pytest.approx(1)
        torch.testing.assert_close(found @ query, goal / goal.norm() * query.norm(), **close)
        plane = torch.linalg.qr(torch.stack([query, goal], 1)).Q
        aside = other - plane @ (plane.T @ other)
        torch.testing.assert_close(found @ aside, aside, **close)

    def test_rotation_solves_the_published_problem(self):
        """U Vᵀ is what is nearest to goal queryᵀ: the trace with it is the singular value."""
        query, goal = torch.randn(2, 5, dtype=torch.float64)
        product = torch.outer(goal, query)
        u, s, v = torch.linalg.svd(product)
        found = (rotation(query, goal) * product).sum()
        torch.testing.assert_close(found, ((u @ v) * product).sum())
        torch.testing.assert_close(found, s[0])

    def test_rotations_that_have_no_plane(self):
        query = t(0.3, -0.4)
        for goal in (query, 2 * query, 0 * query, t(math.nan, 1)):
            torch.testing.assert_close(rotation(query, goal), torch.eye(2).double())
        assert torch.equal(rotation(0 * query, query), torch.eye(2).double())
        torch.testing.assert_close(rotation(query, -query) @ query, -query)


def drawn(widths, classes=4):
    torch.manual_seed(0)
    head = RollingHead(widths, classes).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    return head, {name: torch.randn(5, width).double() for name, width in widths.items()}


class TestHead:
    @torch.no_grad()
    def test_by_loops(self):
        head, x = drawn({"a": 3, "b": 2})
        head.turn(rotation(*torch.randn(2, 3).double()))
        logits, own = head(x)
        for names, found in ((["a", "b"], logits), (["a"], own["a"]), (["b"], own["b"])):
            for i in range(5):
                tokens = [head.start, *(head.tokens[name](x[name][i]) for name in names)]
                query = head.rotation @ head.to_query(head.start)
                scores = t(*(float(head.to_key(c) @ query) / math.sqrt(3) for c in tokens))
                weights = scores.exp() / scores.exp().sum()
                seen = sum(w * head.to_value(c) for w, c in zip(weights, tokens, strict=True))
                torch.testing.assert_close(found[i], head.linear(head.out(seen)))

    def test_turns_add_up(self):
        head, _ = drawn({"a": 4})
        first, second, query = *(rotation(*torch.randn(2, 4).double()) for _ in "12"), head.query()
        head.turn(first)
        head.turn(second)
        torch.testing.assert_close(head.query(), second @ first @ query)

    def test_a_checkpoint_of_the_model_predicts_as_the_model_did(self):
        run = Run("rolling_q").train(3)
        assert run.method.turns
        file = io.BytesIO()
        torch.save(run.model.state_dict(), file)
        file.seek(0)
        fresh = net(seed=5, head="rolling")
        fresh.load_state_dict(torch.load(file, weights_only=True))
        x = {name: torch.randn(4, 1, 5) for name in NAMES[:2]}
        assert torch.equal(fresh.eval()(x).logits, run.model.eval()(x).logits)


def doubled(model, batch):
    inputs, target, index = batch
    return model({name: x.double() for name, x in inputs.items()}, index), target


def training(case, names=NAMES[:2], **settings):
    run = Run(case, names, **settings)
    run.model.double().eval()
    return run.seen_by(doubled)


def slow(model, names, beta, rho, has=lambda name, i: True):
    """Rotates the query as one would write it, sample by sample; whether it did."""
    head, data = model.head, Toy(36, names, seed=1)
    query = head.rotation @ (head.to_query.weight @ head.start + head.to_query.bias)
    s, direction = {}, {}
    for name in names:
        keys, cosines = [], []
        for i in (i for i in range(36) if has(name, i)):
            feature = model.encoders[name](data[i][0][name].double()[None])[0]
            token = head.tokens[name].weight @ feature + head.tokens[name].bias
            key = head.to_key.weight @ token + head.to_key.bias
            key = key.float().double()  # as a look keeps what it finds
            keys.append(key)
            cosines.append(float(key @ query / (key.norm() * query.norm())))
        s[name] = sum(cosines) / len(cosines)
        direction[name] = sum(keys) / sum(keys).norm()
    if max(s.values()) - min(s.values()) <= beta:
        return False
    whole = sum(math.exp(-2 * rho * each) for each in s.values())
    goal = sum(math.exp(-2 * rho * s[name]) / whole * direction[name] for name in names)
    u, goal = query / query.norm(), goal / goal.norm()
    v = goal - (goal @ u) * u
    v = v / v.norm()
    angle = math.acos(float(goal @ u))
    turn = torch.linalg.matrix_exp(angle * (torch.outer(v, u) - torch.outer(u, v)))
    head.rotation.copy_(turn @ head.rotation)
    return True


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3]])
def test_golden_epochs(names):
    """With the second rotation, none remains."""
    settings = {"beta": 0.02, "rho": 2.0, "times": 2}
    run, joint = training("rolling_q", names, **settings), training("joint", names, head="rolling")
    turns = 0
    for epoch in range(5):
        if epoch and turns < 2:
            with torch.no_grad():
                turns += slow(joint.model, names, 0.02, 2.0)
        run.train(epoch + 1, start=epoch)
        joint.train(epoch + 1, start=epoch)
        assert run.method.turns == turns
        for key, value in joint.model.state_dict().items():
            torch.testing.assert_close(run.model.state_dict()[key], value, rtol=1e-8, atol=1e-10)
    assert turns == 2


def test_the_query_then_has_the_direction_of_the_anchor():
    run = training("rolling_q", beta=0.0, rho=3.0)
    query, keys, cosine = run.method._found(run.probe)
    run.method.before_epoch(0, run.probe)
    assert torch.equal(run.model.head.query().double(), query)
    run.method.before_epoch(1, run.probe)
    found, goal = run.model.head.query(), anchor(keys, shares(cosine, 3.0))
    torch.testing.assert_close(found / found.norm(), goal / goal.norm())
    torch.testing.assert_close(found.norm(), query.norm())
    weak, strong = run.method._found(run.probe)[2][cosine.argsort()]
    assert weak > strong


def test_a_threshold_above_the_imbalance_leaves_the_query():
    run, joint = Run("rolling_q", beta=2.0), Run("joint", head="rolling")
    assert run.train(3).method.turns == 0
    weights = joint.train(3).model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in run.model.state_dict().items())
    assert float(run.method.metrics["turns"]) == 0


@pytest.mark.parametrize("absent", [False, True])
def test_samples_that_lack_a_modality_do_not_count(absent):
    """By a mask, or as batches without it."""
    run = training("rolling_q", beta=0.0)

    def has(name, i):
        return name == "a" or (i >= 8 if absent else i % 3 > 0)

    def partly(model, batch):
        inputs, target, index = batch
        here = {name: torch.tensor([has(name, int(i)) for i in index]) for name in inputs}
        inputs = {name: x for name, x in inputs.items() if not absent or here[name].all()}
        output, target = doubled(model, (inputs, target, index))
        return replace(output, present=None if absent else here), target

    probe = evenly.Probe(run.model, partly, run.train_loader, run.val_loader)
    run.method.before_epoch(1, probe)
    expected = net(head="rolling").double().eval()
    with torch.no_grad():
        assert slow(expected, NAMES[:2], 0.0, 1.0, has)
    found, rotated = run.model.head.rotation, expected.head.rotation
    torch.testing.assert_close(found, rotated, rtol=1e-8, atol=1e-10)


def test_a_modality_that_nobody_has_is_compared_with_none():
    run = training("rolling_q", beta=0.0)
    alone = lambda model, batch: doubled(model, ({"a": batch[0]["a"]}, *batch[1:]))  # noqa: E731
    probe = evenly.Probe(run.model, alone, run.train_loader, run.val_loader)
    run.method.before_epoch(1, probe)
    assert run.method.turns == 0


def test_without_rotations_no_probe_is_needed():
    for method in (Run("rolling_q", times=0).method, Run("rolling_q", names=("a",)).method):
        method.before_epoch(0)
        method.before_epoch(1)


class TestMessages:
    def test_a_head_without_a_query(self):
        with pytest.raises(TypeError, match=r"a query to rotate; ConcatHead has none\."):
            RollingQ(net().encoders, head=net().head)

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"beta": 2.5}, r"RollingQ: 'beta' must be from 0 to 2; found 2\.5"),
            ({"rho": -1.0}, r"RollingQ: 'rho' must be finite and not negative; found -1\.0"),
            ({"rho": math.inf}, "RollingQ: 'rho' must be finite and not negative; found inf"),
            ({"times": -1}, "RollingQ: 'times' must be not negative; found -1"),
        ],
    )
    def test_settings_out_of_range(self, settings, text):
        model = net(head="rolling")
        with pytest.raises(ValueError, match=text):
            RollingQ(model.encoders, head=model.head, **settings)

    def test_a_loop_without_a_probe_is_told_before_the_first_step(self):
        with pytest.raises(ValueError, match="found no probe"):
            Run("rolling_q").method.before_epoch(0)
