"""The cost of a comparison's second method relative to the first, with a frozen encoder.

    python benchmarks/frozen.py

The encoder is a ViT-B/32 with random weights (88 million, CLIP's size), the data are random
pictures of 224 x 224. The first run computes features and keeps them, the second reads them; both
are whole runs, from building the model to the test split, with inspection.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from promise import Promise, report, seconds

from evenly.data import Data
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training

MOST = 0.15


def random_data(count):
    """Pictures and numbers in three splits: 60, 20 and 20 of 100 samples."""
    stream = torch.Generator().manual_seed(0)
    shape = (count, 3, 224, 224)
    inputs = {
        "picture": torch.randint(0, 256, shape, generator=stream, dtype=torch.uint8),
        "number": torch.randn(count, 16, generator=stream),
    }
    cut = torch.arange(count).split([6 * count // 10, count // 5, count // 5])
    rows = dict(zip(("train", "val", "test"), cut, strict=True))
    return Data("random", inputs, torch.arange(count) % 4, rows, list("abcd"))


def measured(folder, count, epochs):
    """Seconds of the first and of the second run."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    config = CLIPVisionConfig(**sizes, num_attention_heads=12, image_size=224, patch_size=32)
    CLIPVisionModel(config).save_pretrained(folder / "weights")
    data = random_data(count)
    encoders = {"picture": f"auto(pretrained={folder / 'weights'},freeze=true,width=64)"}
    training = Training("random", epochs=epochs, encoders=encoders, precision="32")

    def run(method):
        cell, out, kept = Cell(training, method, 0), folder / "runs" / method, folder / "features"
        return seconds(lambda: run_cell(cell, out, data=data, features=kept))

    return run("joint"), run("ogm_ge")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, second = measured(Path(folder), options.samples, options.epochs)
    print(f"first {first:.1f} s, second {second:.1f} s")
    what = "a comparison on a frozen ViT-B/32: the second method's time / the first's"
    report([Promise(what, second / first, MOST, at_least=False)])


if __name__ == "__main__":
    main()
