import math

import pytest

from evenly.cli.tune import TUNE
from evenly.lab.many.space import METHOD, TRAINING, Range, Space, log
from evenly.lab.many.tuned import Tuned
from evenly.lab.run.build import (
    build_method,
    build_model,
    build_optimizer,
    build_sampler,
    load_data,
)
from evenly.lab.run.describe import defaults
from evenly.lab.run.settings import Cell, Training
from evenly.methods import METHODS
from support import CASES, Run, equal, info, make, net, parts, uninterrupted, weights
from support import each as cases

TINY = Training(data="synthetic(train=24,val=12,test=12,classes=3)", width=4, epochs=90)
NAMES = ["unimodal(modality=m1)", *(name for name in METHODS if name != "unimodal")]


def test_every_method_says_what_is_searched():
    """A new method needs a line; one without settings an empty one."""
    assert METHOD.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_defaults_lie_within_their_ranges(name):
    found = defaults(name)
    for setting, each in METHOD[name].items():
        assert setting not in TRAINING["sgd"]
        default = found[setting]
        assert each.low <= default <= each.high, setting
        assert isinstance(default, int) == each.is_whole, setting


@pytest.mark.parametrize("end", ["low", "high"])
@pytest.mark.parametrize("method", NAMES)
def test_a_method_can_be_built_at_the_ends_of_its_ranges(method, end):
    space = Space.of(TINY, method)
    tuned = space.tuned({name: getattr(each, end) for name, each in space.ranges.items()})
    cell = Cell(tuned.of(TINY), tuned.method, 0)
    data = load_data(TINY)
    model = build_model(data, cell)
    build_method(cell, model, build_optimizer(model, cell.training), build_sampler(data, cell))
    assert cell.training.lr == getattr(TRAINING["sgd"]["lr"], end)


def test_all_methods_share_ranges_and_only_what_is_not_given_is_searched():
    joint, relearn = Space.of(TINY, "joint"), Space.of(TINY, "relearn(every=7)")
    assert joint.ranges == TRAINING["sgd"]
    assert list(relearn.ranges) == ["lr", "weight_decay", "strength", "times"]
    found = relearn.tuned({"lr": 0.0123456, "weight_decay": 1e-4, "strength": 2.71828, "times": 2})
    assert found.method == "relearn(every=7,strength=2.72,times=2)"
    assert (found.lr, found.weight_decay) == (0.0123, 1e-4)
    assert found.of(TINY).lr == 0.0123
    adam = Space.of(Training(optimizer="adamw"), "joint")
    assert adam.ranges == TRAINING["adamw"]


@pytest.mark.parametrize(
    ("method", "searched"),
    [
        ("smv", ["warmup"]),
        ("smv(level=modality)", ["alpha", "warmup"]),
        ("bss", ["fused", "unimodal"]),
        ("bss(pace=curriculum)", ["fused", "unimodal", "start", "grow"]),
        ("g_blending", ["trial_epochs"]),
        ("g_blending(online=true)", ["super_epoch"]),
        ("lfm(schedule=heuristic)", ["epochs"]),
        ("lfm(schedule=learnt)", ["weight"]),
        ("mslr(strategy=keep)", []),
    ],
)
def test_what_is_searched_depends_on_what_is_given(method, searched):
    assert list(Space.of(TINY, method).ranges) == ["lr", "weight_decay", *searched]


def acts(case, **changed):
    """The epochs in which a method acts."""
    method = Run(case, **changed).method
    return [epoch for epoch in range(100) if method.is_due(epoch)]


def trains_otherwise(case, **changed):
    """Whether weights differ after some epochs."""
    run, usual = Run(case, **changed), uninterrupted(case).weights
    return any(
        not equal(weights(run.train(epochs, start=epochs - 1).model), usual[epochs])
        for epochs in range(1, 5)
    )


@pytest.fixture(autouse=True)
def few_clusterings(monkeypatch):
    """As the uninterrupted training has, which the tests of every method share."""
    monkeypatch.setattr("evenly.diagnosis.gap.HALVINGS", (2, 2))


# Of so few samples, no verdict of Remedy's would differ.
SEARCHED = [
    case for case in CASES if "+" not in case and METHOD[parts(case)[0]] and case != "remedy"
]


@pytest.mark.parametrize("case", cases(SEARCHED))
def test_a_setting_is_searched_if_it_has_an_effect(case):
    name, variant = parts(case)
    method, settings = make(case, net(head=info(case).head)), {**defaults(name), **variant}
    for setting, found in METHOD[name].items():
        now = getattr(method, setting)
        other = found.low if now == found.high else found.high
        if setting in method.info.in_epochs:
            other = now + 1
        changed = {setting: other}
        changes = acts(case) != acts(case, **changed) or trains_otherwise(case, **changed)
        assert changes == found.acts(settings), setting


def test_epochs_scale_with_the_length_of_training():
    def every(epochs):
        return Space.of(Training(epochs=epochs), "relearn").ranges["every"]

    assert every(90) == Range(5, 40)
    assert every(45) == Range(2, 20)
    assert every(3) == Range(1, 1)  # a period cannot become 0


def test_what_is_given_is_tried_first():
    """Also beyond the ranges, and with all its digits."""
    space = Space.of(Training(lr=0.54321, weight_decay=0.0, epochs=45), "relearn(times=9)")
    assert space.first == Tuned("relearn(every=10,strength=3.0,times=9)", 0.54321, 0.0)


def test_distributions_are_the_ranges():
    whole, real = Range(1, 8, log=True), log(0.01, 1.0)
    assert (whole.distribution().low, whole.distribution().high) == (1, 8)
    assert whole.distribution().log
    assert real.distribution()._contains(math.sqrt(0.01))
    assert real.value(0.123456) == 0.123
    assert whole.value(3) == 3
    assert str(real) == "0.01 to 1, log"
    assert str(Range(1, 8)) == "1 to 8"


def test_help_says_what_all_methods_are_tried_with():
    text = " ".join(TUNE.split())
    for ranges in TRAINING.values():
        for each in ranges.values():
            low, high = (f"{end:g}".replace("e-0", "e-") for end in (each.low, each.high))
            low = {"0.0001": "1e-4"}.get(low, low)
            assert f"from {low} to {high}" in text
