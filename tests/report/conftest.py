"""Writes the folder of a comparison as the lab does, with plausible numbers."""

import csv
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from playwright.sync_api import sync_playwright

from evenly.files import write_sealed
from evenly.report.comparison import ENOUGH


def _spread(values):
    """Mean, standard deviation and a rough 95 % interval, from enough seeds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, "", "", ""
    std = float(np.std(values, ddof=1))
    if len(values) < ENOUGH:
        return mean, std, "", ""
    half = 2.8 * std / math.sqrt(len(values))
    return mean, std, mean - half, mean + half


def _metrics(rng, method, modalities, epochs, quality):
    """The lines of metrics.csv, with a drop after each re-learning and a gap that grows."""
    every = max(2, epochs // 4)
    moments = [every * i + 1 for i in (1, 2, 3)] if method.startswith("relearn") else []
    moments = [moment for moment in moments if moment < epochs]
    widening = dict.fromkeys(modalities, 0.0)
    last = 0
    clarity = quality + rng.normal(0, 0.01)
    rows = []
    for epoch in range(epochs):
        row = {"epoch": epoch}
        if epoch in moments:
            last = epoch
            for name in modalities:
                strength = math.tanh(3 * widening[name])
                row[f"relearn_strength/{name}"] = round(strength, 4)
                widening[name] *= 1 - strength
        since = (epoch - last + 1) / epochs
        learnt = 1 - math.exp(-6 * (epoch + 1) / epochs)
        dip = 0.08 * math.exp(-20 * since) if last else 0.0
        row["train_loss"] = 1.7 * math.exp(-5 * (epoch + 1) / epochs) + dip + rng.normal(0, 0.01)
        row["train_accuracy"] = min(1.0, 0.3 + 0.68 * learnt - dip)
        row["val_accuracy"] = quality * (0.4 + 0.6 * learnt) - dip + rng.normal(0, 0.004)
        row["val_loss"] = 1.9 - 1.4 * row["val_accuracy"]
        for i, name in enumerate(modalities):
            widening[name] += (0.6 - 0.1 * i) / epochs + rng.normal(0, 0.004)
            widening[name] = max(widening[name], 0.0)
            row[f"val_accuracy/{name}"] = row["val_accuracy"] * (0.9 - 0.1 * i)
            if epoch % 2 == 0:
                train = (1.1 - 0.08 * i) * clarity * (0.5 + 0.5 * learnt)
                row[f"purity_train/{name}"] = train
                row[f"purity_val/{name}"] = max(0.0, train - widening[name])
                row[f"gap/{name}"] = abs(train - row[f"purity_val/{name}"])
                row[f"gap_error/{name}"] = 0.02
        rows.append(row)
    return rows


def _write_csv(path, columns, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _write_projection(folder, modalities, classes, samples):
    """Clusters in the plane, some samples among the wrong one; as `projection` does."""
    rng = np.random.default_rng(samples)
    target = np.arange(samples) % classes
    predicted = np.where(rng.random(samples) < 0.8, target, (target + 1) % classes)
    arrays = {"source": np.array("0" * 64), "modalities": np.array(modalities), "target": target,
              "predicted": predicted, "row": 2 * np.arange(samples)}  # fmt: skip
    for place in range(len(modalities)):
        centres = rng.normal(0, 20, (classes, 2))
        places = centres[predicted] + rng.normal(0, 3, (samples, 2))
        arrays[f"tsne_{place}"] = places.astype(np.float32)
    np.savez_compressed(folder / "projection.npz", allow_pickle=False, **arrays)


def _write_run(folder, rng, method, seed, modalities, class_names, epochs, quality, samples, *,
               finished):  # fmt: skip
    folder.mkdir(parents=True)
    config = {"data": "digits", "method": method, "seed": seed, "epochs": epochs,
              "batch_size": 64, "optimizer": "SGD", "lr": 0.05}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    rows = _metrics(rng, method, modalities, epochs, quality)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    _write_csv(folder / "metrics.csv", columns, rows if finished else rows[: epochs // 3])
    if not finished:
        return None
    test = {"accuracy": quality + rng.normal(0, 0.008)}
    test["macro_f1"] = test["accuracy"] - 0.007
    for i, name in enumerate(modalities):
        test[f"accuracy/{name}"] = test["accuracy"] * (0.9 - 0.12 * i) + rng.normal(0, 0.01)
        test[f"probe/{name}"] = test[f"accuracy/{name}"] + 0.05
        test[f"contribution/{name}"] = 0.5 / (i + 1) - 0.6 * (i == 2)
        test[f"only/{name}"] = 0.7 - 0.1 * i
        test[f"without/{name}"] = 0.3 + 0.1 * i
        for rate in (0.25, 0.5, 0.75):
            less = rate * (test["accuracy"] - test[f"without/{name}"])
            test[f"missing_{rate:g}/{name}"] = test["accuracy"] - less
        for level in (0.5, 1, 2, 4):
            test[f"noise_{level:g}/{name}"] = test["accuracy"] / (1 + level)
    result = {"method": method, "seed": seed, "best_epoch": epochs - 3, "epochs": epochs,
              "steps": epochs * 20, "seconds": float(rng.uniform(20, 40)),
              "peak_memory_mb": float(rng.uniform(300, 500)), "precision": "bf16-mixed",
              "metrics": {"val": {**test}, "test": test}}  # fmt: skip
    classes = max(2, len(class_names))
    probabilities = rng.dirichlet(np.ones(classes), 30).astype(np.float32)
    np.savez(folder / "predictions.npz", probabilities=probabilities,
             target=rng.integers(0, classes, 30), index=np.arange(30))  # fmt: skip
    if seed == 0 and modalities and class_names:
        _write_projection(folder, modalities, len(class_names), samples)
    write_sealed(folder / "result.json", result)
    return result


def _summarise(folder, methods, results):
    rows, summary = [], []
    for method in methods:
        cells = [result for result in results if result["method"] == method]
        rows += [
            {"method": method, "seed": cell["seed"], "split": split, "metric": name, "value": value}
            for cell in cells
            for split, metrics in cell["metrics"].items()
            for name, value in metrics.items()
        ]
        for split in ("val", "test"):
            for name in cells[0]["metrics"][split] if cells else ():
                values = [cell["metrics"][split][name] for cell in cells]
                mean, std, low, high = _spread(values)
                line = {"method": method, "split": split, "metric": name, "mean": mean,
                        "std": std, "low": low, "high": high, "seeds": len(cells)}  # fmt: skip
                both = {cell["seed"] for cell in cells} & {
                    result["seed"] for result in results if result["method"] == "joint"
                }
                line["pairs"] = len(both)
                joint = [r["metrics"][split][name] for r in results if r["method"] == "joint"]
                if method != "joint" and joint:
                    apart = mean - float(np.mean(joint))
                    line["difference"] = apart
                    if len(both) >= ENOUGH:
                        line["difference_low"] = apart - 0.02
                        line["difference_high"] = apart + 0.02
                        p = math.exp(-120 * abs(line["difference"]))
                        line["p_value"] = p
                        line["p_holm"] = min(1.0, p * max(1, len(methods) - 1))
                summary.append(line)
    _write_csv(folder / "results.csv", ["method", "seed", "split", "metric", "value"], rows)
    _write_csv(folder / "summary.csv",
               ["method", "split", "metric", "mean", "std", "low", "high", "seeds", "pairs",
                "difference", "difference_low", "difference_high", "p_value", "p_holm"],
               summary)  # fmt: skip


def write_comparison(
    folder: Path,
    *,
    methods=("joint", "relearn", "ogm_ge"),
    seeds=3,
    modalities=("top", "bottom"),
    class_names=tuple("0123456789"),
    epochs=30,
    samples=40,
    missing=(),
    unfinished=(),
    failed=(),
) -> Path:
    """Writes a comparison; `missing`, `unfinished` and `failed` hold (method, seed) pairs."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "command": f"evenly compare --data digits --methods {','.join(methods)} --seeds {seeds}",
        "data": "digits", "methods": list(methods), "seeds": seeds, "epochs": epochs,
        "batch_size": 64, "optimizer": "SGD", "lr": 0.05, "precision": "auto",
        "notes": ["no validation split: a stratified 15 % was drawn from train."],
        "class_names": list(class_names), "modalities": list(modalities),
        "versions": {"evenly": "0.1.0", "torch": "2.13.0", "python": "3.12.3"},
        "hardware": "2 cores, Intel Xeon with AMX, no GPU",
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    results = []
    for i, method in enumerate(methods):
        quality = 0.83 + 0.035 * math.sin(1.9 * i) + 0.02 * method.startswith("relearn")
        for seed in range(seeds):
            if (method, seed) in missing:
                continue
            name = re.sub(r"[^\w=.,()-]", "_", method)
            cell = folder / "runs" / f"{name}-{seed}"
            open_ = (method, seed) in unfinished or (method, seed) in failed
            result = _write_run(cell, rng, method, seed, modalities, class_names, epochs, quality,
                                samples, finished=not open_)  # fmt: skip
            if (method, seed) in failed:
                (cell / "error.txt").write_text(
                    "Traceback …\nevenly.errors.UserError: the loss is <nan>.\n"
                )
            if result:
                results.append(result)
    if results:
        _summarise(folder, methods, results)
    return folder


@pytest.fixture(scope="session")
def write():
    """The function that writes a comparison."""
    return write_comparison


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A finished comparison, of which each test has a copy."""
    return write_comparison(tmp_path_factory.mktemp("written") / "comparison")


@pytest.fixture
def folder(written, tmp_path):
    """A finished comparison of three methods over three seeds, two modalities."""
    return shutil.copytree(written, tmp_path / "comparison")


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
