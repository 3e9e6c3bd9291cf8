"""The benchmarks in a short form: ratios with wide margins, so that what got slower is noticed."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
from cases.plan import VERDICTS  # noqa: E402
from promise import FILE, Promise, table  # noqa: E402

# Short options, and which share of its target a figure must reach at least.
SHORT = {
    "forms": (["--pairs", "5"], 0.6),
    "gap": (["--only", "real", "--rounds", "1"], 0.9),
    "kmeans": (["--pairs", "3", "--small"], 0.2),
    "loader": (["--rounds", "1", "--clips", "64"], 0.5),
    "relearn": (["--pair", "mlp", "--pairs", "3"], 0.7),
}


@pytest.mark.slow
@pytest.mark.xdist_group("benchmarks")  # one after the other
@pytest.mark.parametrize("program", SHORT)
def test_what_is_promised_of_speed_holds_with_a_margin(program, tmp_path):
    options, margin = SHORT[program]
    promises = short(program, options, tmp_path)
    low = [promise for promise in promises if not within(promise, margin)]
    assert not low, table(low)


def test_a_promise_says_whether_it_is_met():
    least, most = Promise("fast", 3.0, 4.0), Promise("small", 3.0, 4.0, at_least=False)
    assert (least.met, most.met) == (False, True)
    assert least.cells == ("fast", "3", "≥ 4", "NOT met")
    assert Promise("fast", 3.0, 4.0, here=False, why="no GPU").cells[3] == "(no GPU)"
    assert table([most]).splitlines()[1].split() == ["small", "3", "≤", "4", "met"]


def test_what_is_noted_down_stands_on_the_page(tmp_path):
    import run

    page = tmp_path / "performance.md"
    page.write_text(f"# Performance\n\n{run.MARK}\n\nan older table")
    machine = {"date": "2026-11-21", "hardware": "two cores", "torch": "2.13.0"}
    promises = [Promise("fast", 5.0, 4.0), Promise("small", 3.0, 2.0, at_least=False)]
    found = {**machine, "promises": [asdict(promise) for promise in promises]}
    for _ in range(2):
        run.noted({"kmeans": found}, tmp_path, page)
    written = page.read_text()
    assert written.startswith(f"# Performance\n\n{run.MARK}\n\ntwo cores; torch 2.13.0:\n")
    assert written.count("| fast | 5 | ≥ 4 | met | 2026-11-21 |") == 1
    assert "| small | 3 | ≤ 2 | NOT met |" in written
    assert "older" not in written
    later = {**found, "date": "2026-11-29", "promises": [asdict(Promise("slim", 2.0, 4.0))]}
    run.noted({"lab": later}, tmp_path, page)
    rows = [line.split("|")[1].strip() for line in page.read_text().splitlines() if "20" in line]
    assert rows[-3:] == ["fast", "small", "slim"]


def test_the_best_reader_of_two_clusters_is_right_by_the_normal_distribution():
    from cases.sources import Clusters, bayes

    source = Clusters(torch.tensor([[[-1.0]], [[1.0]]]), torch.eye(3))
    shares, stream = torch.tensor([0.5, 0.5]), torch.Generator().manual_seed(0)
    expected = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    assert bayes(source, 1.0, shares, stream) == pytest.approx(expected, abs=0.005)
    some = 0.6 * expected + 0.4 * 0.5  # where it shows any class, half of the guesses are right
    assert bayes(source, 0.6, shares, stream) == pytest.approx(some, abs=0.005)
    assert bayes(source, 0.0, shares, stream) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["blobs", "signs", "corners", "rings", "pattern"])
def test_a_source_has_the_density_that_it_draws_from(kind):
    from cases.sources import MAKERS, Patterns

    stream = torch.Generator().manual_seed(0)
    if kind == "pattern":
        source = Patterns(torch.randn(4, 2, 3, generator=stream), 8)
    else:
        source = MAKERS[kind](4, 3, 4, 0.7, stream)
    label = torch.randint(4, (20_000,), generator=stream)
    posterior = source.log_likelihood(source.draw(label, stream)).softmax(1)
    # Of samples that a reader is so sure of, it is right about so many.
    sure, guess = posterior.max(1)
    for part in sure.argsort().chunk(4):
        true = (guess[part] == label[part]).float().mean().item()
        assert true == pytest.approx(sure[part].mean().item(), abs=0.025)


@pytest.mark.slow
def test_the_sets_of_cases_share_no_seed_and_a_seed_says_all():
    from cases.case import cases

    dev, held = cases("dev"), cases("held")
    assert not {one.name for one in dev} & {one.name for one in held}
    assert not {one.seed for one in dev} & {one.seed for one in held}
    assert {truth for one in dev for truth in one.truth.values()} == set(VERDICTS)
    for one in (*dev, *held):
        for split in ("train", "val"):
            assert set(one.rows(split)[1].tolist()) == set(range(one.plan.classes)), one.name
    case = min(dev[:40], key=lambda one: one.plan.epochs * len(one.rows("train")[1]))
    first, second = case.build(), cases("dev")[dev.index(case)].build()
    after = second.model.state_dict()
    assert all(x.equal(after[name]) for name, x in first.model.state_dict().items())
    assert any(not x.equal(after[name]) for name, x in first.initial.items())


@pytest.mark.slow
def test_the_oracle_confirms_what_cases_are_built_for():
    from cases import oracle
    from cases.case import cases

    truths = set()
    for case in cases("dev")[:6]:
        known = oracle.measured(case, case.build())
        found = {name: one.verdict for name, one in known.items()}
        truths |= {truth for name, truth in case.truth.items() if found[name] == truth}
    assert truths == set(VERDICTS)


@pytest.mark.parametrize(
    ("truth", "changed"),
    [
        ("learnt", {}),
        ("scarce", {"there": 0.5, "memorised": 0.5}),
        ("learnt", {"there": 0.5, "fall": 0.3}),  # with another it tells the class
        ("over-trained", {"memorised": 0.3, "learnt": 0.6}),
        ("suppressed", {"learnt": 0.6, "followed": 0.0}),
        ("unused", {"followed": 0.0}),
        (None, {"learnt": 0.72}),
        (None, {"there": 0.55}),
        (None, {"memorised": 0.2}),
        (None, {"followed": 0.05}),
    ],
)
def test_the_oracle_calls_what_is_clear_by_its_name(truth, changed):
    from cases.oracle import Measures

    sound = Measures(0.5, 0.9, 0.8, 0.8, 0.0, 0.4, 0.0)
    assert replace(sound, **changed).verdict == truth


def test_verdicts_are_counted():
    import verdicts

    found = [
        ("learnt", "learnt"),
        ("scarce", "unclear"),
        ("unused", "suppressed"),
        ("suppressed", "suppressed"),
    ]
    assert verdicts.right(found) == (1 + 0.5 + 0 + 1) / 4
    assert verdicts.false(found) == 1 / 3
    rows = list(verdicts.confusion(found))
    assert rows[2] == "| learnt | 1 | 0 | 0 | 0 | 0 | 0 | 1.00 |"
    assert rows[5] == "| scarce | 0 | 0 | 0 | 0 | 0 | 1 | 0.00 |"
    measured = [(0.1, True), (0.2, True), (0.4, False), (0.15, False), (math.inf, False)]
    assert verdicts.split_best(measured) == pytest.approx(0.3)


def test_tables_of_verdicts_stand_between_their_marks(tmp_path):
    import verdicts

    page = tmp_path / "checkup.md"
    page.write_text(f"before\n{verdicts.MARK}\nold\n{verdicts.END}\nafter\n")
    for _ in range(2):
        verdicts.write(["| new |"], page)
    assert page.read_text() == (f"before\n{verdicts.MARK}\n\n| new |\n\n{verdicts.END}\nafter\n")


@pytest.mark.parametrize(("epochs", "budget"), [(66, 22), (22, 10)])
def test_a_checkup_of_a_case_has_the_budget_of_the_command(epochs, budget, monkeypatch):
    import verdicts
    from cases.case import Built

    given = {}

    def checkup(*_, **options):
        given.update(options)
        return SimpleNamespace(verdict={}, as_dict=dict)

    built = Built(*[None] * 7, epochs)
    case = SimpleNamespace(
        name="one", plan=SimpleNamespace(parts={}), truth={}, build=lambda: built
    )
    monkeypatch.setattr(verdicts.oracle, "measured", lambda *_: {})
    monkeypatch.setattr(verdicts.evenly, "checkup", checkup)
    monkeypatch.setattr(verdicts, "peers", lambda _: {})
    assert verdicts.recorded(case).confirmed
    assert given["epochs"] == budget


def test_a_strength_cut_to_0_does_not_hide_how_the_gap_varies():
    import gap

    small, large = (0.0, 0.01, 0.05), (0.0, 0.05, 0.05)  # strength, gap, error
    mean, deviation, uncut = gap.varied([small, large])
    assert (mean, deviation) == (0, 0)
    assert uncut == pytest.approx((math.tanh(0.15) - math.tanh(0.03)) / math.sqrt(2))
    found = {
        ("input", "a"): {"stable": (0.0, 0.0, 0.04), "paper": (0.1, 0.06, 0.06)},
        ("input", "b"): {"stable": (0.1, 0.02, 0.01), "paper": (0.1, 0.07, 0.05)},
    }
    cut, whole = gap.steady("leaves", found)
    assert (cut.found, cut.met) == (0.02, True)
    assert (whole.found, whole.met) == (0.04, False)
    assert whole.what == "stable gap, leaves: deviation of tanh(3 · gap) (paper 0.060)"


@pytest.mark.slow  # its imports
def test_k_means_is_set_beside_flash_kmeans_where_that_is_installed(monkeypatch):
    import gpu

    monkeypatch.setitem(sys.modules, "flash_kmeans", None)
    x = torch.tensor([[0.0], [2.0], [10.0], [12.0]]).repeat(8, 1)
    assert [(one.here, one.met) for one in gpu.beside_flash(x, 2)] == [(False, False)] * 2

    def batch_kmeans_Euclid(many, k, *, init_centroids, **_):
        assert (many.shape, init_centroids.shape) == ((10, 32, 1), (10, k, 1))
        centers = torch.full((10, k, 1), 100.0)
        centers[3] = torch.tensor([[0.0], [10.0]])  # the best start
        return None, centers, 1

    theirs = SimpleNamespace(batch_kmeans_Euclid=batch_kmeans_Euclid)
    monkeypatch.setitem(sys.modules, "flash_kmeans", theirs)
    time, inertia = gpu.beside_flash(x, 2)
    assert time.here
    assert inertia.found == pytest.approx(32 / 64)  # 1 from each row to its mean; 4 for half


def test_splits_of_known_shares_and_separation():
    import gap

    assert gap.counts(60, 3, "equal").tolist() == [20, 20, 20]
    assert gap.counts(110, 3, "reversed").tolist() == [20, 30, 60]
    assert gap.counts(60, 30, "skewed").min() == 1
    drawn = gap.drawn(gap.counts(4000, 2, "equal"), 100.0, 3, 1)
    mean = drawn.features["x"].view(2, 2000, 3).mean(1)
    centres = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert (mean - 100 * centres.relu()).abs().max() < 0.1


def test_samples_of_any_kind_become_vectors():
    import gap

    from evenly.data import Padded
    from evenly.data.dataset import Modality

    def flat(x, kind, *shape):
        return gap.flat(x, Modality("m", kind, shape, torch.zeros(0), torch.ones(0)))

    words = Padded(torch.tensor([[2, 2, 0], [3, 1, 2]]), torch.tensor([2, 3]))
    assert flat(words, "text", 3, 4).tolist() == [[0, 1, 0], [1, 1, 1]]
    steps = torch.arange(32.0).repeat(2, 1)[:, :, None]
    assert flat(steps, "sequence", 32, 1)[0].tolist() == [2 * n + 0.5 for n in range(16)]
    ragged = flat(Padded(steps, torch.tensor([32, 16])), "sequence", 32, 1)
    assert ragged.tolist() == [[2 * n + 0.5 for n in range(16)], list(range(16))]
    assert flat(torch.ones(2, 3, 64, 64), "image", 3, 64, 64).shape == (2, 3 * 16 * 16)


def within(promise, margin):
    """Whether the figure is not worse than its target by more than the margin, if it is of time."""
    if "inertia" in promise.what:
        return promise.met
    if promise.at_least:
        return promise.found >= margin * promise.target
    return promise.found <= promise.target / margin


def short(program, options, folder):
    """The promises of a benchmark's short form."""
    file = folder / "promises"
    command = [sys.executable, BENCHMARKS / f"{program}.py", *options]
    # One thread: two that wait for each other beside another test would be measured, not the work.
    given = {**os.environ, FILE: str(file), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert file.is_file(), done.stderr
    return [Promise(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
