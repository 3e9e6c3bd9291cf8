"""Our methods beside the authors' code: what both make of the same weights and batches, in float64.

Each entry of `COMPARISONS` runs our method's own hooks on a recording of theirs, and gives pairs of
arrays, ours and theirs, that are equal. `DEPARTURES` gives those that are not, and says why.
tests/methods/test_published.py holds us to both, docs/make_fidelity.py writes both down.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from evenly import METHODS, Output, Probe, Resampler
from evenly.methods import cggm, lfm, mla, opm, remix
from evenly.nn import HEADS, LateFusion

HERE = Path(__file__).parent
Pairs = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Recording:
    """What the authors' code gave: whose, at which commit, what was run, and arrays by name."""

    repository: str
    commit: str
    ran: str
    arrays: dict[str, Tensor]

    def __getitem__(self, key):
        return self.arrays[key]

    def under(self, prefix):
        """The arrays whose names begin so, by the rest of the name."""
        return {k.removeprefix(prefix): x for k, x in self.arrays.items() if k.startswith(prefix)}

    def setting(self, key, default=0.0):
        """A number that the code was run with."""
        found = self.arrays.get(f"hyper/{key}")
        return default if found is None else found.item()


@cache
def recording(name):
    shared, found = (
        json.loads((HERE / f"{file}.json").read_text(encoding="utf-8")) for file in ("shared", name)
    )
    arrays = found.pop("arrays")
    for key, x in arrays.items():
        arrays[key] = array(shared[x] if isinstance(x, str) else x)
    return Recording(**found, arrays=arrays)


def array(x):
    whole = "." not in json.dumps(x)
    return torch.tensor(x, dtype=torch.int64 if whole else torch.float64)


class Perceptron(nn.Module):
    """l2(relu(l1(x)))."""

    def __init__(self, shapes):
        super().__init__()
        self.l1, self.l2 = (nn.Linear(*shapes[f"{name}.weight"][::-1]) for name in ("l1", "l2"))
        self.out_features = self.l2.out_features

    def forward(self, x):
        return self.l2(self.l1(x).relu())


class Convolution(nn.Module):
    """relu(conv1(x)), through bn1 where there is one, averaged over frames and pixels."""

    def __init__(self, shapes):
        super().__init__()
        self.out_features, channels, size, _ = shapes["conv1.weight"]
        self.conv1 = nn.Conv2d(channels, self.out_features, size, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.out_features) if "bn1.weight" in shapes else nn.Identity()

    def forward(self, x):
        frames = x.unsqueeze(2) if x.ndim == 4 else x
        pictures = frames.transpose(1, 2).flatten(0, 1)
        seen = self.bn1(self.conv1(pictures)).relu().mean((2, 3))
        return seen.unflatten(0, (len(x), -1)).mean(1)


class Layer(nn.Linear):
    """tanh(Wx + b)."""

    def __init__(self, shapes):
        super().__init__(*shapes["weight"][::-1])

    def forward(self, x):
        return super().forward(x).tanh()


ENCODERS = {"l1.weight": Perceptron, "conv1.weight": Convolution, "weight": Layer}


def model(recorded, head):
    """The late fusion that the recorded weights are of."""
    weights = recorded.under("weights/")
    shapes: dict[str, dict[str, torch.Size]] = {}
    for key, x in weights.items():
        if key.startswith("encoders."):
            _, name, rest = key.split(".", 2)
            shapes.setdefault(name, {})[rest] = x.shape
    encoders = {
        name: next(kind for key, kind in ENCODERS.items() if key in mine)(mine)
        for name, mine in shapes.items()
    }
    classes = len(list(weights.values())[-1])  # the last tensor is of the layer of the logits
    found = LateFusion(encoders, classes, head).double()
    lacking, strange = found.load_state_dict(weights, strict=False)
    assert not strange
    assert all("running" in key or "num_batches" in key for key in lacking)
    return found


class Training:
    """A method in a loop on the recorded batches."""

    def __init__(self, name, method, *, head=None, given=(), **settings):
        """Loads the recorded weights; `given` names what the method takes of the loop."""
        self.recorded = recording(name)
        self.model = model(self.recorded, head or METHODS[method].info.head)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            self.recorded.setting("lr"),
            self.recorded.setting("momentum"),
            weight_decay=self.recorded.setting("weight_decay"),
        )
        parts = {"head": self.model.head, "optimizer": self.optimizer}
        parts = {key: parts[key] for key in given}
        self.method = METHODS[method](self.model.encoders, **parts, **settings)

    def output(self, step=0):
        found = self.model(self.recorded.under(f"step{step}/input/"))
        return replace(found, index=torch.arange(len(found.logits)))

    def backward(self, step=0, between=lambda method: None):
        """The loss of a step; the gradients are then as the optimiser finds them."""
        self.optimizer.zero_grad()
        loss = self.method.loss(self.output(step), self.recorded[f"step{step}/label"])
        self.method.backward(loss)
        between(self.method)
        self.method.before_step()
        return loss.detach()

    def gradients(self, prefix="step0/grad/"):
        """Ours and theirs, of the parameters whose gradients are recorded."""
        mine = dict(self.model.named_parameters())
        return {
            f"{prefix}{key}": (mine[key].grad.clone(), x)
            for key, x in self.recorded.under(prefix).items()
        }


def one_step(name, method, **settings):
    """A step from the recorded weights: gradients, and the loss where it is recorded."""
    training = Training(name, method, **settings)
    training.method.before_epoch(0)
    loss, pairs = training.backward(), training.gradients()
    if "step0/loss" in training.recorded.arrays:
        pairs["step0/loss"] = loss, training.recorded["step0/loss"]
    return pairs


def agm(name, steps):
    settings = {key: recording(name).setting(key) for key in ("alpha", "cap")}
    training = Training(name, "agm", given=["head"], **settings)
    training.method.before_epoch(0)
    pairs = {}
    for n in range(steps):
        pairs[f"step{n}/loss"] = training.backward(n), training.recorded[f"step{n}/loss"]
        pairs |= training.gradients(f"step{n}/grad/")
        for name, k in zip(training.model.encoders, training.method.coefficient, strict=True):
            key = f"step{n}/coefficient/{name}"
            pairs[key] = k, training.recorded[key]
        training.optimizer.step()
    return pairs


def ogm_ge(off=1e-8):
    """A step with their noise, and with what they add to its deviation taken off theirs."""
    recorded = recording("ogm_ge")
    noise = recorded.under("step0/noise/")
    given = iter(noise.values())
    with patch.object(Tensor, "normal_", lambda x, generator: x.copy_(next(given).flatten())):
        pairs = one_step("ogm_ge", "ogm_ge")
    for key, x in noise.items():
        mine, theirs = pairs[f"step0/grad/{key}"]
        pairs[f"step0/grad/{key}"] = mine, theirs - off * x
    return pairs


def cggm_rule(rows):
    recorded = recording("cggm")
    return {
        f"rule/{row}": (
            cggm.coefficients(recorded["rule/change"][row]),
            recorded["rule/coefficient"][row],
        )
        for row in rows
    }


def cggm_steps(lam=0.0):
    """Two steps with their accuracies; of the head, which they clip, the gradients before that."""
    training = Training("cggm", "cggm", rho=recording("cggm").setting("rho"), lam=lam)
    training.method.before_epoch(0)
    pairs = {}
    for n in range(2):
        accuracy = torch.stack(list(training.recorded.under(f"lam0/step{n}/accuracy/").values()))

        def put_in(method, accuracy=accuracy):
            count, *_ = method._found.value
            method._found.value[1:4] = count * accuracy

        training.backward(n, put_in)
        prefix = "lam02/step1/" if lam and n else f"lam0/step{n}/"  # equal in the first step
        pairs |= training.gradients(f"{prefix}grad_before_clip/")
        before, clipped = (
            training.recorded[f"{prefix}{part}/encoders.text.weight"].norm()
            for part in ("grad_before_clip", "grad")
        )
        for key, (mine, theirs) in training.gradients(f"{prefix}grad/").items():
            if "head" in key:
                pairs[key] = mine, theirs * before / clipped
        training.optimizer.step()
    return pairs


def cggm_equal():
    """All where every modality gained, and then the head's, whose gradient is not scaled."""
    steps = {k: x for k, x in cggm_steps().items() if "step0" in k or "head" in k}
    return cggm_rule([0, 1, 2, 3]) | steps


def cggm_direction():
    """The gradients of the head, which the released term moves, and no other."""
    return {k: x for k, x in cggm_steps(lam=0.2).items() if k.startswith("lam02") and "head" in k}


def cggm_losses():
    steps = {k: x for k, x in cggm_steps().items() if "step1" in k and "encoders" in k}
    return cggm_rule([4, 5, 6]) | steps


def cml():
    recorded = recording("cml")
    logits = [x.clone().requires_grad_() for x in recorded.under("logits/").values()]
    names = [str(n) for n in range(len(logits))]
    rows = len(recorded["label"])
    output = Output(
        logits[0],
        {name: torch.zeros(rows, 1, dtype=torch.float64) for name in names},
        fuse=lambda kept: logits[len(names) - len(kept)],
    )
    layers = {name: nn.Linear(1, 1) for name in names}
    method = METHODS["cml"](layers, penalty=1.0)
    whole = method.loss(output, recorded["label"])
    first, _ = method.metrics.values()
    # What the penalty adds; ours is a mean over the samples, theirs a sum.
    penalty = rows * (whole - METHODS["cml"](layers, penalty=0.0).loss(output, recorded["label"]))
    grads = torch.autograd.grad(penalty, logits)
    return {
        "penalty_after_pair0": (rows * first, recorded["penalty_after_pair0"]),
        "penalty_after_pair1": (penalty.detach(), recorded["penalty_after_pair1"]),
    } | {f"grad/{n}": (grad, recorded[f"grad/{n}"]) for n, grad in enumerate(grads)}


def film():
    recorded = recording("film")
    features = recorded.under("input/")
    theirs = {"modulations.audio": "fc", "linear": "fc_out"}
    names = {f"{k}.{part}": f"{x}.{part}" for k, x in theirs.items() for part in ("weight", "bias")}
    weights = {key: recorded[f"film_x/weights/{name}"] for key, name in names.items()}
    widths = {name: x.shape[1] for name, x in features.items()}
    head = HEADS["film"](widths, len(weights["linear.bias"])).double()
    head.load_state_dict(weights)
    logits = head(features)[0]
    cross_entropy(logits, recorded["label"]).backward()
    return {"logits": (logits.detach(), recorded["film_x/logits"])} | {
        name: (head.get_parameter(key).grad, recorded[f"film_x/grad/{name}"])
        for key, name in names.items()
    }


def g_blending(*cases, rule="delta_true"):
    layers = nn.ModuleDict({name: nn.Linear(1, 1) for name in ("a", "b")})
    optimizer = torch.optim.SGD(layers.parameters(), 0.1)
    names = ("fused", "unimodal/a", "unimodal/b")
    pairs = {}
    for case in cases:
        found = recording("g_blending").under(f"{case}/")

        def losses(when, found=found):
            train, val = (found[f"{when}/{split}_loss"].tolist() for split in ("train", "val"))
            return dict(zip(names, zip(train, val, strict=True), strict=True))

        method = METHODS["g_blending"](layers, optimizer=optimizer)
        method._losses = lambda probe, of=losses: of("before")
        method._tried = lambda probe, objective, epoch, of=losses: of("after")
        method.before_epoch(0, probe(layers))
        weights = torch.tensor(list(method.weights.values()), dtype=torch.float64)
        pairs[case] = weights, found[f"{rule}/weight"]
    return pairs


def probe(layers):
    """One that is never asked."""
    return Probe(layers, lambda model, batch: batch, [], [])


def lfm_divergence(one, other):
    """What the released code calls the Jensen-Shannon divergence: KL(m ‖ p) + KL(m ‖ q), halved."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    m = ((p.exp() + q.exp()) / 2).log()
    return (m.exp() * (2 * m - p - q)).sum(-1).mean() / 2


def lfm_loss():
    training = Training("lfm", "lfm", given=["head"])
    training.method.before_epoch(0)
    training.method.weight = training.recorded["weight1/hyper/alignment_weight"].item()
    loss = training.backward()
    return {"weight1/loss": (loss, training.recorded["weight1/loss"])} | training.gradients(
        "weight1/grad/"
    )


def lfm_three():
    found = recording("lfm").under("three/")
    names = ("audio", "visual", "text")
    logits = [found[f"logits/{name}"].clone().requires_grad_() for name in names]
    total = lfm.alignment(logits)
    grads = torch.autograd.grad(total, logits)
    return {"three/sum": (total.detach(), found["sum"])} | {
        f"three/grad/{name}": (grad, found[f"grad/{name}"])
        for name, grad in zip(names, grads, strict=True)
    }


def lfm_schedule(negative):
    theirs = recording("lfm")["schedule/alignment_weight"]
    training = Training("lfm", "lfm", given=["head"])
    weights = []
    for epoch in range(len(theirs)):
        training.method.before_epoch(epoch)
        weights.append(training.method.weight)
    here = (theirs < 0) == negative
    return {"schedule": (torch.tensor(weights, dtype=torch.float64)[here], theirs[here])}


def lfm_learnt():
    """The weight after an update on the first half of the batch, with their divergence."""
    training = Training("lfm", "lfm", given=["head"], schedule="learnt", weight=0.5, samples=8)
    recorded, rows = training.recorded, range(8)

    def forward(model, index):
        inputs = {name: x[index] for name, x in recorded.under("step0/input/").items()}
        return model(inputs), recorded["step0/label"][index]

    loader = DataLoader(rows, len(rows))
    with patch.object(lfm, "divergence", lfm_divergence):
        training.method.before_epoch(0, Probe(training.model, forward, loader, loader))
    mine = torch.tensor(training.method.weight, dtype=torch.float64)
    return {"weight": (mine, recorded["learnable/from_0.5/after"][1])}


def lfm_equal():
    with patch.object(lfm, "divergence", lfm_divergence):
        return lfm_loss() | lfm_three() | lfm_schedule(negative=False)


def mcr(**games):
    pairs = {}
    for game, k in games.items():
        training = Training(
            "mcr",
            "mcr",
            head="concat",
            k=k,
            strength=1.0,
            contrast=0.0,
            bottleneck=0.0,
            unimodal=0.0,
        )
        training.method._orders = lambda logits: recording("mcr")["step0/order"]
        output, target = training.output(), training.recorded["step0/label"]
        value = training.method.loss(output, target) - cross_entropy(output.logits, target)
        value.backward()
        pairs |= training.gradients(f"{game}/grad/")
        pairs[f"{game}/value"] = value.detach(), training.recorded[f"{game}/value"]
    return pairs


def mla_steps(after):
    """The head's gradients in both turns, before and after the projection."""
    training = Training("mla", "mla", given=["head"])
    weight = training.model.head.linear.weight
    training.method.before_epoch(0)
    pairs = {}
    for turn in range(2):

        def note(method, key=f"update{turn}/grad_before/head.linear.weight"):
            pairs[key] = weight.grad.clone(), training.recorded[f"released/{key}"]

        training.backward(0, note)
        key = f"update{turn}/grad_after/head.linear.weight"
        pairs[key] = weight.grad.clone(), training.recorded[f"{after}/{key}"]
        training.optimizer.step()
    return pairs


MLA_AFTER = "update1/grad_after/head.linear.weight"


def mla_rule():
    """P and the projection by it, from the second turn's own features, as in the released code."""
    training = Training("mla", "mla", given=["head"])
    training.method.before_epoch(0)
    training.backward()
    training.optimizer.step()
    theirs = training.recorded.under("name_and_denominator_repaired/update1/")
    mean = training.output().features["visual"].detach().mean(0)
    before = theirs["grad_before/head.linear.weight"]
    eye = torch.eye(len(mean), dtype=torch.float64)
    found = mla.updated(eye, mean, mla.damping(0.0))
    return {
        "projection": (found, theirs["projection"]),
        "projected": (mla.projected(before, found), theirs["grad_after/head.linear.weight"]),
    }


def mla_denominator():
    projection, _ = mla_rule()["projection"]
    return {"projection": (projection, recording("mla")["name_repaired/update1/projection"])}


def mla_equal():
    """All but the projection in the second turn, and the rule by which that is made."""
    steps = mla_steps(after="released")
    del steps[MLA_AFTER]
    return steps | mla_rule()


def mla_fusion():
    found = recording("mla").under("inference/")
    logits = {name: found[f"logits/{name}"] for name in ("audio", "visual")}
    classes = logits["audio"].shape[1]
    head = HEADS["shared"](dict.fromkeys(logits, classes), classes).double()
    nn.init.eye_(head.linear.weight)
    nn.init.zeros_(head.linear.bias)
    theirs = sum(found[f"weight/{name}"] * x for name, x in logits.items())
    return {"fused": (head(logits)[0].detach(), theirs)}


def mslr():
    pairs = {}
    for series in ("series_rising_noisy", "series_falling_rising"):
        found = recording("mslr").under(f"{series}/")
        layers = nn.ModuleDict({name: nn.Linear(1, 1) for name in ("audio", "visual")})
        optimizer = torch.optim.SGD(layers.parameters(), 0.1)
        method = METHODS["mslr"](
            layers, optimizer=optimizer, window=recording("mslr").setting("window")
        )
        course = zip(*(found[f"accuracy/{name}"].tolist() for name in layers), strict=True)
        factors = []
        for epoch, accuracy in enumerate(course, start=1):
            accuracies = dict(zip(layers, accuracy, strict=True))
            method._accuracies = lambda probe, found=accuracies: found
            method.before_epoch(epoch, probe(layers))
            factors.append(list(method.factor.values()))
        mine = torch.tensor(factors, dtype=torch.float64).T
        for name, factor in zip(layers, mine, strict=True):
            pairs[f"{series}/{name}"] = factor, found[f"factor_after_epoch/{name}"]
    return pairs


def opm_step(variant):
    recorded = recording("opm")

    def given(index, *salt):
        if salt[-1] < 0:  # whether the step is modulated at all
            return torch.zeros(1)
        return torch.where(recorded["step0/kept"][:, salt[-1]] > 0, 1.0, -1.0)

    training = Training(
        "opm",
        "opm",
        start=0,
        probability=1.0,
        criterion=lambda logits, target: cross_entropy(logits[1:], target[1:]),
    )
    training.method.before_epoch(0)
    with patch.object(opm, "uniform", given):
        loss = training.backward()
    return {"loss": (loss, recorded[f"step0/{variant}/loss"])} | training.gradients(
        f"step0/{variant}/grad/"
    )


def opm_equal():
    recorded = recording("opm")
    settings = recorded.setting("base"), recorded.setting("lam")
    rates = torch.stack([opm.drop_rates(score, *settings) for score in recorded["score"]])
    return {"drop_rate": (rates, recorded["drop_rate"])} | opm_step("rate_detached")


def reconboost(variant):
    recorded = recording("reconboost")
    training = Training(
        "reconboost", "reconboost", given=["head", "optimizer"], alternation=1, rectification=1
    )
    losses = []
    for n in range(8):
        training.method.before_epoch(n // 3)
        losses.append(training.backward(n))
        training.optimizer.step()
    return {"loss": (torch.stack(losses), recorded[f"{variant}/loss"][: len(losses)])}


def remix_equal():
    recorded = recording("remix")
    rows = range(len(recorded["step0/label"]))
    sampler = Resampler(rows)
    training = Training("remix", "remix", sampler=sampler, warmup=1)
    method = training.method

    def forward(model, index):
        inputs = {name: x[index] for name, x in recorded.under("step0/input/").items()}
        return replace(model(inputs), index=index), recorded["step0/label"][index]

    loader = DataLoader(rows, len(rows), sampler=sampler)
    look = Probe(training.model, forward, loader, loader)
    method.before_epoch(0, look)
    pairs = {"all/loss": (training.backward(), recorded["all/loss"])}
    pairs |= training.gradients("all/grad/")
    method.before_epoch(1, look)
    pairs["chosen"] = method.assigned, recorded["assignment/chosen"]
    for name, logits in training.output().unimodal.items():
        bits = remix.confidence(logits.detach()) / math.log(2)
        pairs[f"kl/{name}"] = bits, recorded[f"assignment/kl/{name}"]
    method.assigned = torch.ones(len(rows), dtype=torch.int64)
    pairs["visual/loss"] = training.backward(), recorded["visual/loss"]
    return pairs | training.gradients("visual/grad/")


@dataclass(frozen=True)
class Comparison:
    """What is equal: by which method or head, and what of the authors' had to be put in."""

    method: str
    pairs: Callable[[], Pairs]
    given: str = ""


COMPARISONS = {
    "agm": Comparison("agm", partial(agm, "agm", 2)),
    "agm_alpha15": Comparison("agm", partial(agm, "agm_alpha15", 1)),
    "agm_batchnorm": Comparison("agm", partial(agm, "agm_batchnorm", 1)),
    "cggm": Comparison("cggm", cggm_equal, "its classifiers' accuracies"),
    "cml": Comparison("cml", cml),
    "dgl": Comparison("dgl", partial(one_step, "dgl", "dgl")),
    "dgl_sum": Comparison("dgl", partial(one_step, "dgl_sum", "dgl", head="sum")),
    "film": Comparison("film", film),
    "g_blending": Comparison("g_blending", partial(g_blending, "all_gain"), "the losses"),
    "lfm": Comparison("lfm", lfm_equal, "its divergence"),
    "mcr": Comparison("mcr", partial(mcr, greedy=-1, ind=0, colab=1), "its permutations"),
    "mla": Comparison("mla", mla_equal, "the features that it updates P with"),
    "mmcosine": Comparison("mmcosine", partial(one_step, "mmcosine", "mmcosine", given=["head"])),
    "mmpareto": Comparison("mmpareto", partial(one_step, "mmpareto", "mmpareto")),
    "mmpareto_conflict": Comparison("mmpareto", partial(one_step, "mmpareto_conflict", "mmpareto")),
    "mslr": Comparison("mslr", mslr, "the accuracies"),
    "ogm": Comparison("ogm", partial(one_step, "ogm", "ogm")),
    "ogm_ge": Comparison("ogm_ge", ogm_ge, "its noise and deviation"),
    "ogm_sum": Comparison("ogm", partial(one_step, "ogm_sum", "ogm", head="sum")),
    "opm": Comparison("opm", opm_equal, "what it drops, the rate without a gradient,"),
    "reconboost": Comparison(
        "reconboost", partial(reconboost, "agreement_live"), "a gradient of its agreement term"
    ),
    "remix": Comparison("remix", remix_equal),
}


@dataclass(frozen=True)
class Departure:
    """What is not equal, on purpose: where, in words, and how large the difference is."""

    recording: str
    says: str
    pairs: Callable[[], Pairs]
    size: float


def only(key, pairs):
    return {key: pairs()[key]}


def remix_unit():
    recorded = recording("remix")
    found = remix_equal()
    return {
        key: (mine * math.log(2), recorded[f"assignment/{key}"])
        for key, (mine, _) in found.items()
        if key.startswith("kl/")
    }


DEPARTURES = [
    Departure(
        "cggm",
        "a loss of accuracy counts as 0, where the released coefficients change sign",
        cggm_losses,
        0.714,
    ),
    Departure(
        "cggm",
        "the direction loss has the cosines of gradients, where the released one has those of "
        "parameters",
        cggm_direction,
        0.01876,
    ),
    Departure(
        "g_blending",
        "a loss that gains nothing has weight 0, there that of its |G|",
        partial(g_blending, "fused_lost", "one_lost"),
        0.0174,
    ),
    Departure(
        "g_blending",
        "gains and overfitting are differences, there by default what is left afterwards",
        partial(g_blending, "all_gain", rule="delta_false"),
        0.185,
    ),
    Departure(
        "lfm",
        "the divergence is Jensen-Shannon's, there ½ KL(m ‖ p) + ½ KL(m ‖ q)",
        lambda: lfm_loss() | lfm_three(),
        0.075,
    ),
    Departure(
        "lfm",
        "the weight of the alignment is never below 0, there in epochs 177 to 188",
        partial(lfm_schedule, negative=True),
        0.0105,
    ),
    Departure(
        "lfm",
        "a learnt weight follows the mean over all parameters, there over the first tensor",
        lfm_learnt,
        1.549e-8,
    ),
    Departure(
        "mla",
        "the head's gradient is projected, there only if it is wrapped in DataParallel",
        partial(only, MLA_AFTER, partial(mla_steps, after="released")),
        0.0574,
    ),
    Departure(
        "mla",
        "P is divided by a number as in the paper, there element by element",
        mla_denominator,
        0.703,
    ),
    Departure(
        "mla",
        "P holds the features of the modality before, there the present one's",
        partial(only, MLA_AFTER, partial(mla_steps, after="name_and_denominator_repaired")),
        0.0143,
    ),
    Departure(
        "mla",
        "the prediction weighs modalities for each sample, there for the batch of a test as a "
        "whole",
        mla_fusion,
        0.00596,
    ),
    Departure(
        "ogm_ge",
        "the noise has the gradient's own deviation, there 1e-8 more",
        partial(ogm_ge, off=0.0),
        2.72e-8,
    ),
    Departure(
        "opm",
        "the dropping rate is a number, there it has a gradient",
        partial(opm_step, "released"),
        0.00191,
    ),
    Departure(
        "reconboost",
        "the agreement term has a gradient, there none",
        partial(reconboost, "released"),
        2.45e-7,
    ),
    Departure("remix", "the divergence is in nats, there in bits", remix_unit, 0.0273),
]


def largest(pairs):
    """The largest difference in a comparison."""
    return max(float((mine - theirs).abs().max()) for mine, theirs in pairs.values())
