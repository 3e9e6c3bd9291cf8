import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, parametrize

from evenly import soft_reinit_
from evenly.distributed import whole
from evenly.reinit import cut_like, initial_of, nearest
from many_ranks import on_ranks
from support import net


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def stir(module, seed=1, scale=1.0):
    """Moves what a training would."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                noise = torch.randn(p.shape, generator=stream, dtype=p.dtype.to_real())
                p.add_(scale * noise)
    return module


def moved(seed=1):
    """An encoder with BatchNorm that is no longer where it started."""
    encoder = net().encoders["a"].double()
    initial = snapshot(encoder)
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(torch.randn(p.shape, generator=stream, dtype=p.dtype))
    return encoder, initial


class TestPlainLayers:
    def test_by_hand(self):
        layer = nn.Linear(1, 1)
        nn.init.constant_(layer.weight, 4.0)
        nn.init.constant_(layer.bias, -2.0)
        soft_reinit_(layer, {"weight": torch.tensor([[8.0]]), "bias": torch.tensor([2.0])}, 0.25)
        assert layer.weight.item() == 0.75 * 4 + 0.25 * 8
        assert layer.bias.item() == 0.75 * -2 + 0.25 * 2

    @given(weight=st.floats(0, 1))
    def test_the_formula_for_every_parameter(self, weight):
        encoder, initial = moved()
        before = snapshot(encoder)
        soft_reinit_(encoder, initial, weight)
        for name, p in encoder.named_parameters():
            expected = (1 - weight) * before[name] + weight * initial[name]
            torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-12)

    def test_exact_at_both_ends(self):
        encoder, initial = moved()
        before = snapshot(encoder)
        soft_reinit_(encoder, initial, 0.0)
        assert all(torch.equal(p, before[name]) for name, p in encoder.named_parameters())
        soft_reinit_(encoder, initial, 1.0)
        assert all(torch.equal(p, initial[name]) for name, p in encoder.named_parameters())

    def test_in_place_and_buffers_stay(self):
        encoder, initial = moved()
        places = [p.data_ptr() for p in encoder.parameters()]
        encoder[1].running_mean.fill_(7.0)
        soft_reinit_(encoder, {**initial, "1.running_mean": torch.zeros(4)}, 0.5)
        assert [p.data_ptr() for p in encoder.parameters()] == places
        assert torch.equal(encoder[1].running_mean, torch.full((4,), 7.0, dtype=torch.float64))

    @pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
    def test_weight_out_of_range(self, weight):
        encoder, initial = moved()
        with pytest.raises(ValueError, match="from 0 to 1; found"):
            soft_reinit_(encoder, initial, weight)

    def test_initial_weights_that_do_not_fit(self):
        layer = nn.Linear(2, 1)
        with pytest.raises(ValueError, match="lack 'bias'"):
            soft_reinit_(layer, {"weight": torch.zeros(1, 2)}, 0.5)
        with pytest.raises(ValueError, match=r"'bias' of shape \(3,\).*has \(1,\)"):
            soft_reinit_(layer, {"weight": torch.zeros(1, 2), "bias": torch.zeros(3)}, 0.5)


class TestKindsOfParameters:
    def test_frozen_integers_stay_and_are_not_copied(self):
        layer = nn.Linear(3, 2)
        layer.base = nn.Parameter(torch.arange(6, dtype=torch.int8), requires_grad=False)
        start = initial_of(layer)
        assert set(start) == {"weight", "bias"}
        stir(layer)
        before = layer.weight.detach().clone()
        soft_reinit_(layer, start, 0.5)
        torch.testing.assert_close(layer.weight.detach(), (before + start["weight"]) / 2)
        assert torch.equal(layer.base, torch.arange(6, dtype=torch.int8))

    def test_integers_of_another_model_are_refused(self):
        layer = nn.Linear(3, 2)
        layer.base = nn.Parameter(torch.arange(6, dtype=torch.int8), requires_grad=False)
        start = {**snapshot(layer), "base": torch.zeros(6, dtype=torch.int8)}
        with pytest.raises(ValueError, match=r"'base' of the module holds integers \(torch.int8\)"):
            soft_reinit_(layer, start, 0.5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
    def test_small_floats_are_rounded_once(self, dtype):
        layer = nn.Linear(40, 30, bias=False)
        first = torch.randn(30, 40)
        layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
        before = layer.weight.detach().clone()
        soft_reinit_(layer, {"weight": first}, 0.3)
        expected = torch.lerp(before.float(), first, 0.3).to(dtype)
        assert torch.equal(layer.weight.float(), expected.float())
        soft_reinit_(layer, {"weight": first}, 1.0)
        assert torch.equal(layer.weight.float(), first.to(dtype).float())

    def test_complex_weights(self):
        layer = nn.Linear(2, 1, bias=False, dtype=torch.complex64)
        nn.init.constant_(layer.weight, 2 + 4j)
        soft_reinit_(layer, {"weight": torch.full((1, 2), 6 - 4j)}, 0.25)
        assert torch.equal(layer.weight, torch.full((1, 2), 3 + 2j))
        with pytest.raises(ValueError, match="hold complex numbers for 'weight'"):
            soft_reinit_(nn.Linear(2, 1, bias=False), snapshot(layer), 0.5)

    def test_an_infinity_that_stands_still(self):
        """As in an attention's mask that is kept as a parameter."""
        layer = nn.Linear(2, 1)
        layer.mask = nn.Parameter(torch.tensor([0.0, -math.inf]), requires_grad=False)
        soft_reinit_(layer, snapshot(layer), 0.5)
        assert torch.equal(layer.mask, torch.tensor([0.0, -math.inf]))

    def test_what_is_frozen_is_not_written_to(self):
        """A base that is offloaded, a table that is a view."""
        layer = nn.Linear(2, 1)
        layer.far = nn.Parameter(torch.zeros(2, device="meta"), requires_grad=False)
        layer.same = nn.Parameter(torch.ones(1, 2).expand(3, 2), requires_grad=False)
        start = initial_of(layer)
        assert "far" not in start
        soft_reinit_(stir(layer), start, 1.0)
        assert torch.equal(layer.weight, start["weight"])

    def test_tied_weights_are_pulled_once(self):
        encoder = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        encoder[1].weight = encoder[0].weight
        start = encoder.state_dict()
        start = {name: value.clone() for name, value in start.items() if name != "0.weight"}
        stir(encoder)
        before = encoder[0].weight.detach().clone()
        soft_reinit_(encoder, start, 0.5)  # a file may hold either of the two names
        assert encoder[1].weight is encoder[0].weight
        expected = (before + start["1.weight"]) / 2
        torch.testing.assert_close(encoder[0].weight.detach(), expected)

    def test_sparse_gradients_leave_a_dense_weight(self):
        table = nn.Embedding(5, 2, sparse=True)
        start = initial_of(table)
        table(torch.tensor([1, 3])).sum().backward()
        torch.optim.SGD(table.parameters(), 1.0).step()
        soft_reinit_(table, start, 0.5)
        moved = torch.zeros(5, 2)
        moved[[1, 3]] = -0.5
        torch.testing.assert_close(table.weight.detach(), start["weight"] + moved)

    def test_what_cannot_be_pulled_is_refused_before_anything_moves(self):
        layer = nn.Linear(3, 2)
        layer.far = nn.Parameter(torch.zeros(2, device="meta"))
        start = {**snapshot(layer), "weight": torch.zeros(2, 3)}
        before = layer.weight.detach().clone()
        with pytest.raises(ValueError, match="'far' of the module is trained on the device"):
            soft_reinit_(layer, start, 0.5)
        assert torch.equal(layer.weight, before)
        layer.far = nn.Parameter(torch.eye(2).to_sparse())
        with pytest.raises(ValueError, match="'far' of the module is trained and sparse"):
            soft_reinit_(layer, {**start, "far": torch.eye(2)}, 0.5)
        layer.far = nn.Parameter(torch.zeros(0))
        layer.far.ds_shape = torch.Size([2, 3])
        with pytest.raises(ValueError, match="partitioned by DeepSpeed"):
            soft_reinit_(layer, {**start, "far": torch.zeros(0)}, 0.5)

    def test_names_that_compiling_changes(self):
        layer = nn.Sequential(nn.Linear(2, 2))
        start = snapshot(torch.compile(layer, backend="eager"))
        assert list(start) == ["_orig_mod.0.weight", "_orig_mod.0.bias"]
        stir(layer)
        soft_reinit_(layer, start, 1.0)
        assert torch.equal(layer[0].weight, start["_orig_mod.0.weight"])
        soft_reinit_(torch.compile(layer, backend="eager"), snapshot(layer), 1.0)


class LoraLinear(nn.Module):
    """A linear layer with adapters, built as PEFT builds them."""

    def __init__(self, base, rank, names=("default",), dora=False, zero=True):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        out, into = base.weight.shape
        self.lora_A = nn.ModuleDict({n: nn.Linear(into, rank, bias=False) for n in names})
        self.lora_B = nn.ModuleDict({n: nn.Linear(rank, out, bias=False) for n in names})
        self.scaling = dict.fromkeys(names, 2.0)
        self.lora_magnitude_vector = nn.ModuleDict()
        self.merged = False
        if zero:
            for layer in self.lora_B.values():
                nn.init.zeros_(layer.weight)
        if dora:
            for name in names:
                norm = self.sum_of(name).norm(dim=1).detach()
                self.lora_magnitude_vector[name] = nn.Module()
                self.lora_magnitude_vector[name].weight = nn.Parameter(norm)

    def sum_of(self, name):
        change = self.lora_B[name].weight @ self.lora_A[name].weight
        return self.base_layer.weight + self.scaling[name] * change

    def weight(self, name="default"):
        """What the layer multiplies its input with."""
        found = self.sum_of(name)
        if name in self.lora_magnitude_vector:
            scale = self.lora_magnitude_vector[name].weight / found.norm(dim=1)
            found = scale[:, None] * found
        return found.detach().clone()


class TestAdapters:
    @pytest.mark.parametrize("dora", [False, True])
    @pytest.mark.parametrize("weight", [1e-4, 0.3, 0.9])
    def test_the_product_is_pulled(self, dora, weight):
        layer = LoraLinear(nn.Linear(7, 5), 2, ("one", "two"), dora)
        start, first = initial_of(layer), {n: layer.weight(n) for n in ("one", "two")}
        stir(layer, scale=0.3)
        learnt = {n: layer.weight(n) for n in ("one", "two")}
        base = layer.base_layer.weight.clone()
        soft_reinit_(layer, start, weight)
        for name in ("one", "two"):
            expected = torch.lerp(learnt[name], first[name], weight)
            torch.testing.assert_close(layer.weight(name), expected)
        assert torch.equal(layer.base_layer.weight, base)

    @pytest.mark.parametrize("dora", [False, True])
    @pytest.mark.parametrize("zero", [False, True])
    def test_both_ends_are_exact(self, dora, zero):
        layer = LoraLinear(nn.Linear(7, 5), 2, dora=dora, zero=zero)
        start = initial_of(layer)
        learnt = snapshot(stir(layer))
        soft_reinit_(layer, start, 0.0)
        assert all(torch.equal(p, learnt[name]) for name, p in layer.named_parameters())
        soft_reinit_(layer, start, 1.0)
        assert all(torch.equal(p, start[name]) for name, p in layer.named_parameters())

    def test_without_a_zero_factor_it_is_the_nearest_product(self):
        """As with PiSSA: the wanted change is of twice the rank."""
        layer = LoraLinear(nn.Linear(7, 5), 2, zero=False)
        start, first = initial_of(layer), layer.weight()
        stir(layer)
        wanted = torch.lerp(layer.weight(), first, 0.4) - layer.base_layer.weight
        soft_reinit_(layer, start, 0.4)
        rest = torch.linalg.svdvals(wanted)[2:].norm()
        assert rest > 0.1
        off = layer.weight() - layer.base_layer.weight - wanted
        torch.testing.assert_close(off.norm(), rest)

    def test_a_quantised_base(self):
        layer = LoraLinear(nn.Linear(7, 5), 2)
        layer.base_layer.weight = nn.Parameter(
            torch.zeros(18, 1, dtype=torch.uint8), requires_grad=False
        )
        start = initial_of(layer)
        stir(layer)
        before = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        soft_reinit_(layer, start, 0.25)
        after = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(after, 0.75 * before)

    def test_parameters_of_a_layer_itself(self):
        """As loralib has them."""
        layer = nn.Linear(4, 3)
        layer.lora_A, layer.lora_B = (
            nn.Parameter(torch.randn(2, 4)),
            nn.Parameter(torch.zeros(3, 2)),
        )
        start = initial_of(layer)
        stir(layer)
        before = layer.lora_B @ layer.lora_A
        soft_reinit_(layer, start, 0.25)
        torch.testing.assert_close(layer.lora_B @ layer.lora_A, 0.75 * before)

    def test_a_merged_adapter(self):
        layer = LoraLinear(nn.Linear(7, 5), 2)
        start, first = initial_of(layer), layer.weight()
        stir(layer)
        learnt = layer.weight()
        layer.base_layer.weight.copy_(learnt)
        layer.merged = True
        soft_reinit_(layer, start, 0.25)
        torch.testing.assert_close(layer.base_layer.weight, torch.lerp(learnt, first, 0.25))
        apart = layer.base_layer.weight - (layer.weight() - layer.base_layer.weight)
        torch.testing.assert_close(apart, first)  # unmerging finds the base as it was
        layer = LoraLinear(nn.Linear(7, 5), 2, dora=True)
        layer.merged = True
        with pytest.raises(ValueError, match=r"adapter of '' of the module is merged.*Unmerge"):
            soft_reinit_(layer, initial_of(layer), 0.5)

    def test_nearest_of_more_rank_than_there_is(self):
        left, right = torch.randn(3, 4), torch.randn(4, 2)
        a, b = nearest(left, right, torch.zeros(5, 2))
        assert (a.shape, b.shape) == ((5, 2), (3, 5))
        torch.testing.assert_close(b @ a, left @ right)

    @pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}])
    def test_peft(self, settings):
        peft = pytest.importorskip("peft")

        def weights(model):
            merged = copy.deepcopy(model)
            merged.merge_adapter()
            layers = [m.base_layer for m in merged.modules() if hasattr(m, "lora_A")]
            assert len(layers) == len(modules)
            return [layer.weight.detach() for layer in layers]

        encoder = nn.Sequential(
            nn.Embedding(9, 6), nn.Linear(6, 5), nn.Conv1d(5, 4, 3), nn.Linear(4, 2)
        )
        encoder.config = {}  # PEFT asks for one
        modules = ["0", "1", "2"]
        config = peft.LoraConfig(r=2, target_modules=modules, modules_to_save=["3"], **settings)
        model = peft.get_peft_model(encoder, config)
        start, first = initial_of(model), weights(model)
        stir(model, scale=0.3)
        learnt, saved = weights(model), model.base_model.model[3].modules_to_save["default"]
        expected = torch.lerp(saved.weight, start_of(saved, model, start), 0.4)
        soft_reinit_(model, start, 0.4)
        torch.testing.assert_close(saved.weight, expected)
        for found, now, then in zip(weights(model), learnt, first, strict=True):
            torch.testing.assert_close(found, torch.lerp(now, then, 0.4))

    def test_peft_of_attention_whose_base_is_another_parameter_at_each_look(self):
        peft = pytest.importorskip("peft")
        encoder = nn.ModuleDict({"attention": nn.MultiheadAttention(6, 2)})
        encoder.config = {}
        config = peft.LoraConfig(r=2, target_modules=["attention"])
        model = peft.get_peft_model(encoder, config)
        start = initial_of(model)
        stir(model)

        def product():
            layer = model.base_model.model["attention"]
            return layer.lora_B["default"].weight @ layer.lora_A["default"].weight

        learnt = product()
        soft_reinit_(model, start, 0.25)
        torch.testing.assert_close(product(), 0.75 * learnt)
        soft_reinit_(model, start, 1.0)
        assert not product().any()
        assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_encoder():
    module = torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    start = initial_of(module)
    stir(module)
    now = snapshot(module)
    soft_reinit_(module, start, 0.25)
    for name, p in module.named_parameters():
        torch.testing.assert_close(p.detach(), torch.lerp(now[name], start[name], 0.25))


def start_of(layer, model, start):
    return next(start[name] for name, p in model.named_parameters() if p is layer.weight)


def old(make, layer, **given):
    """Torch's norms of old, which it advises against."""
    with pytest.warns(FutureWarning):
        return make(layer, **given)


NORMED = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(6, 4)),
    "weight_norm of columns": lambda: parametrizations.weight_norm(nn.Conv1d(3, 4, 2), dim=1),
    "weight_norm of old": lambda: old(nn.utils.weight_norm, nn.Linear(6, 4)),
    "weight_norm of old of all": lambda: old(nn.utils.weight_norm, nn.Linear(6, 4), dim=None),
    "positive": lambda: positive(nn.Linear(6, 4)),
    "symmetric": lambda: symmetric(nn.Linear(4, 4)),
}
SPECTRAL = {
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 4)),
    "spectral_norm of conv": lambda: parametrizations.spectral_norm(nn.Conv1d(3, 5, 2), dim=1),
    "spectral_norm of old": lambda: nn.utils.spectral_norm(nn.Linear(6, 4)),
}
STIFF = {
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
    "householder": lambda: parametrizations.orthogonal(nn.Linear(6, 4)),
}


class Exp(nn.Module):
    def forward(self, x):
        return x.exp()

    def right_inverse(self, x):
        return x.log()


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).mT


def positive(layer):
    with torch.no_grad():
        layer.weight.abs_()
    return parametrize.register_parametrization(layer, "weight", Exp())


def symmetric(layer):
    return parametrize.register_parametrization(layer, "weight", Symmetric())


def weight_of(layer):
    """The weight that the next pass in evaluation mode has."""
    layer.eval()
    with torch.no_grad():
        layer(torch.zeros(1, *([3, 4] if isinstance(layer, nn.Conv1d) else [layer.in_features])))
        found = layer.weight.clone()
    layer.train()
    return found


class TestComputedWeights:
    @pytest.mark.parametrize("kind", NORMED)
    @pytest.mark.parametrize("weight", [1e-4, 0.3, 0.9])
    def test_the_weight_is_pulled(self, kind, weight):
        layer = NORMED[kind]()
        start, first = initial_of(layer), weight_of(layer)
        learnt = weight_of(stir(layer))
        soft_reinit_(layer, start, weight)
        torch.testing.assert_close(weight_of(layer), torch.lerp(learnt, first, weight))

    @pytest.mark.parametrize("kind", SPECTRAL)
    def test_spectral_norm(self, kind):
        layer = SPECTRAL[kind]()
        start, first = initial_of(layer), weight_of(layer)
        stir(layer)
        for _ in range(50):
            layer(torch.zeros(1, *([3, 4] if isinstance(layer, nn.Conv1d) else [6])))
        between = torch.lerp(weight_of(layer), first, 0.3)
        soft_reinit_(layer, start, 0.3)
        found = weight_of(layer)
        rows = found.movedim(1, 0).flatten(1) if isinstance(layer, nn.Conv1d) else found
        torch.testing.assert_close(torch.linalg.matrix_norm(rows, 2), torch.tensor(1.0))
        cosine = torch.cosine_similarity(found.flatten(), between.flatten(), 0)
        torch.testing.assert_close(cosine, torch.tensor(1.0), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("kind", [*NORMED, *SPECTRAL, *STIFF])
    def test_both_ends_are_exact(self, kind):
        layer = {**NORMED, **SPECTRAL, **STIFF}[kind]()
        start, first = initial_of(layer), weight_of(layer)
        weight_of(stir(layer))
        layer(torch.zeros(1, *([3, 4] if isinstance(layer, nn.Conv1d) else [layer.in_features])))
        learnt = {name: value.clone() for name, value in layer.state_dict().items()}
        soft_reinit_(layer, start, 0.0)
        assert all(torch.equal(x, learnt[name]) for name, x in layer.state_dict().items())
        soft_reinit_(layer, start, 1.0)
        assert all(torch.equal(x, start[name]) for name, x in layer.state_dict().items())
        assert torch.equal(weight_of(layer), first)

    def test_spectral_norm_from_parameters_alone(self):
        """The vectors of the power iteration are made to fit."""
        layer = parametrizations.spectral_norm(nn.Linear(6, 4))
        start = snapshot(layer)
        stir(layer)
        soft_reinit_(layer, start, 1.0)
        first = start["parametrizations.weight.original"]
        torch.testing.assert_close(weight_of(layer), first / torch.linalg.matrix_norm(first, 2))

    @pytest.mark.parametrize("kind", STIFF)
    def test_an_orthogonal_weight_stays_so(self, kind):
        layer = STIFF[kind]()
        start = initial_of(layer)
        with torch.no_grad():  # the diagonal holds signs, which no gradient reaches
            layer.parametrizations.weight.original += torch.randn(layer.weight.shape).tril(-1)
        soft_reinit_(layer, start, 0.3)
        found = weight_of(layer)
        torch.testing.assert_close(found @ found.T, torch.eye(4), rtol=0, atol=1e-5)

    def test_a_frozen_layer_is_left_to_the_last_bit(self):
        layer = parametrizations.weight_norm(nn.Linear(6, 4)).requires_grad_(False)
        start = initial_of(layer)
        soft_reinit_(layer, start, 0.3)
        assert all(torch.equal(p, start[name]) for name, p in layer.named_parameters())


class Box(nn.ModuleDict):
    """Layers of every kind, which FSDP2 can shard."""

    def __init__(self):
        super().__init__(
            {
                "plain": nn.Linear(8, 8),
                "spectral": parametrizations.spectral_norm(nn.Linear(8, 6)),
                "normed": parametrizations.weight_norm(nn.Linear(8, 6)),
                "lora": LoraLinear(nn.Linear(8, 6), 2),
                "dora": LoraLinear(nn.Linear(8, 6), 2, dora=True),
                "pissa": LoraLinear(nn.Linear(8, 6), 2, zero=False),
            }
        )

    def forward(self, x):
        return x


def pulled_in_parts(rank, world):
    """The shards of a pull from parts or from whole initial weights, brought together."""
    found = []
    for cut in (False, True):
        for weight in (0.3, 1.0):
            torch.manual_seed(0)
            box = Box()
            start = initial_of(box)
            fully_shard(stir(box, scale=0.3))
            soft_reinit_(box, cut_like(start, box) if cut else start, weight)
            parts = (*box.named_parameters(), *box.named_buffers())
            found.append({name: whole(x.detach()) for name, x in parts})
    return found


@pytest.mark.distributed
def test_shards_are_pulled_as_the_whole_is(tmp_path):
    first, second = on_ranks(pulled_in_parts, tmp_path)
    expected = []
    for weight in (0.3, 1.0):
        torch.manual_seed(0)
        box = Box()
        start = initial_of(box)
        soft_reinit_(stir(box, scale=0.3), start, weight)
        expected.append(dict((*box.named_parameters(), *box.named_buffers())))
    for found in (first, second):
        for state, wanted in zip(found, expected * 2, strict=True):
            for name, value in wanted.items():
                torch.testing.assert_close(state[name], value.detach(), rtol=1e-5, atol=1e-6)
