"""The lab against a plain loop, and against the build before it had its own engine.

    python benchmarks/lab.py                  # three quarters of an hour on two idle cores
    python benchmarks/lab.py --only train     # a few minutes

- train: the whole of `evenly train --method joint`, as a process, and the whole of a script with
  the same model, data and epochs, which evaluates the validation split after each epoch and the
  test split once, and writes nothing. It runs in 32-bit floats and in bf16, and the faster counts.
- compare: `evenly compare --methods all --seeds 2` on CMU-MOSI, here and before. Accuracies are
  compared where both train in 32-bit floats. Memory is that of a joint run.
- demo: `evenly compare`, what `make demo` runs once it is installed.

CMU-MOSI and CREMA-D are made from ../shared/data, the earlier build from the repository's history;
anything missing is left out, with a note.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from promise import Promise, report

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared" / "data"
BEFORE = "0d09d79"
SETS = ("digits", "cmu_mosi", "cremad_votes")
EPOCHS = 30


def plain(data, precision):
    """The script that the lab is compared with."""
    import torch
    from torch.nn.functional import cross_entropy

    from evenly.lab.run.build import build_model, build_optimizer, load_data
    from evenly.lab.run.settings import Cell, Training

    torch.set_num_threads(1)
    training = Training(data=data)
    loaded = load_data(training)
    model = build_model(loaded, Cell(training, "joint", 0))
    optimizer = build_optimizer(model, training)
    train, val, test = (loaded.split(name) for name in ("train", "val", "test"))
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def batches(split, order):
        for rows in order.split(training.batch_size):
            yield split.__getitems__(rows.tolist())

    @torch.no_grad()
    def accuracy(split):
        model.eval()
        right = 0
        for batch in batches(split, torch.arange(len(split))):
            with half:
                logits = model(batch["inputs"], batch["present"]).logits
            right += int((logits.argmax(1) == batch["target"]).sum())
        model.train()
        return right / len(split)

    best, kept = -1.0, {}
    for _ in range(EPOCHS):
        for batch in batches(train, torch.randperm(len(train))):
            with half:
                logits = model(batch["inputs"], batch["present"]).logits
                loss = cross_entropy(logits, batch["target"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if (found := accuracy(val)) > best:
            best, kept = found, {name: x.clone() for name, x in model.state_dict().items()}
    model.load_state_dict(kept)
    print(f"test accuracy {accuracy(test):.3f}")


def evenly(command, out, *, source=None, **options):
    """Seconds that the command takes, from a folder of sources if one is given."""
    line = [sys.executable, "-m", "evenly.cli", command, "--out", out]
    line += [text for name, value in options.items() for text in (f"--{name}", value)]
    paths = {} if source is None else {"PYTHONPATH": str(source)}
    return timed(line, paths)


def timed(line, variables):
    """Seconds that a process takes."""
    start = time.perf_counter()
    subprocess.run(
        list(map(str, line)), env=os.environ | variables, check=True, capture_output=True
    )
    return time.perf_counter() - start


def converted(folder):
    """What --data takes, for each available set."""
    found = {"digits": "digits"}
    for name in SETS[1:]:
        if not (SHARED / name).is_dir():
            print(f"left out: {name}, as there is no {SHARED / name}")
            continue
        found[name] = str(folder / f"{name}.npz")
        program = HERE.parent / "examples" / f"convert_{name}.py"
        subprocess.run([sys.executable, program, found[name]], check=True, capture_output=True)
    return found


def earlier(folder):
    """The sources of the earlier build; None if the history does not go back that far."""
    root = HERE.parent
    known = subprocess.run(
        ["git", "archive", "--format=tar", f"--output={folder / 'before.tar'}", BEFORE, "src"],
        cwd=root,
        capture_output=True,
        check=False,
    )
    if known.returncode:
        print(f"left out: the build before, as there is no commit {BEFORE} in {root}")
        return None
    (folder / "before").mkdir()
    subprocess.run(["tar", "xf", folder / "before.tar", "-C", folder / "before"], check=True)
    return folder / "before" / "src"


def of_train(data, folder, rounds):
    """The time of a run of the command over that of a plain script."""
    promises = []
    for name, path in data.items():
        taken = {"evenly": [], "32": [], "bf16": []}
        for number in range(rounds):
            out = folder / f"{name}-{number}"
            taken["evenly"].append(evenly("train", out, data=path, method="joint"))
            for precision in ("32", "bf16"):
                line = [sys.executable, __file__, "--plain", path, precision]
                taken[precision].append(timed(line, {}))
        middle = {side: statistics.median(found) for side, found in taken.items()}
        print(name, {side: f"{value:.2f} s" for side, value in middle.items()}, flush=True)
        share = middle["evenly"] / min(middle["32"], middle["bf16"])
        promises.append(
            Promise(f"{name}: evenly train's time / a plain loop's", share, 1.3, at_least=False)
        )
    return promises


def of_compare(data, before, folder, methods):
    """How much faster comparisons are than before, and whether they find the same."""
    took = {}
    for precision in ("auto", "32"):
        for side, source in (("before", before), ("now", None)):
            settings = {"data": data, "methods": methods, "seeds": 2, "epochs": EPOCHS}
            out = folder / f"{side}-{precision}"
            took[side, precision] = evenly(
                "compare", out, source=source, precision=precision, **settings
            )
            print(f"compare, {side}, {precision}: {took[side, precision]:.0f} s", flush=True)
    figures = {side: accuracies(folder / f"{side}-32") for side in ("before", "now")}
    differ = [run for run, value in figures["now"].items() if figures["before"][run] != value]
    for run in differ:
        print(f"test accuracy of {run}: {figures['before'][run]} before, {figures['now'][run]} now")
    memory = {side: peak(folder / f"{side}-auto") for side in ("before", "now")}
    print("peak memory of a joint run, MB:", memory)
    what = f"compare --methods {methods} --seeds 2, cmu_mosi"
    return [
        Promise(f"{what}: time before / now", took["before", "auto"] / took["now", "auto"], 2.5),
        Promise(
            f"{what}, both in 32-bit floats: time before / now",
            took["before", "32"] / took["now", "32"],
            1.0,
        ),
        Promise(
            f"{what}, both in 32-bit floats: runs of {len(figures['now'])} with another accuracy",
            len(differ),
            0,
            at_least=False,
        ),
        Promise(
            "peak memory of a joint run in compare: now / before",
            memory["now"] / memory["before"],
            0.7,
            at_least=False,
        ),
    ]


def accuracies(out):
    """The test accuracy by method and seed."""
    return {
        f"{row['method']}, seed {row['seed']}": row["value"]
        for row in _rows(out)
        if (row["split"], row["metric"]) == ("test", "accuracy")
    }


def peak(out):
    """Peak MB of the joint runs."""
    return max(
        float(row["value"])
        for row in _rows(out)
        if (row["method"], row["metric"]) == ("joint", "peak_memory_mb")
    )


def _rows(out):
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


def of_demo(before, folder):
    """How long `make demo` takes once it is installed."""
    took = {
        side: evenly("compare", folder / f"demo-{side}", source=source)
        for side, source in (("before", before), ("now", None))
    }
    print("demo:", {side: f"{value:.0f} s" for side, value in took.items()})
    share = took["now"] / took["before"]
    return [Promise("make demo after installation: time now / before", share, 0.6, at_least=False)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("train", "compare", "demo")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="these of them")
    parser.add_argument("--rounds", type=int, default=3, help="of train")
    parser.add_argument("--methods", default="all", help="of compare")
    parser.add_argument("--plain", nargs=2, metavar=("DATA", "PRECISION"), help="the plain loop")
    arguments = parser.parse_args()
    if arguments.plain:
        plain(*arguments.plain)
        return
    promises = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = converted(folder)
        before = earlier(folder)
        if "train" in arguments.only:
            promises += of_train(data, folder, arguments.rounds)
        if "compare" in arguments.only and before and "cmu_mosi" in data:
            promises += of_compare(data["cmu_mosi"], before, folder, arguments.methods)
        if "demo" in arguments.only and before:
            promises += of_demo(before, folder)
    report(promises)


if __name__ == "__main__":
    main()
