import gc
import signal
from pathlib import Path

import jaxtyping
import pytest
import torch

import checked

# Imported before the processes of tests are forked. The last freezes what is there by then.
PRELOADED = (
    "lightning",
    "pyarrow.parquet",
    "sklearn.datasets",
    "sklearn.manifold",
    "transformers.audio_utils",
    "evenly.cli.compare",
    "evenly.data.raw.prepare",
    "evenly.lab.many.compare",
    "evenly.lab.many.preloaded",
)
jaxtyping.jaxtyped = checked.checked
torch.set_num_threads(1)  # the models are small, and several tests share two cores
# Tests that are started in the background, or under nohup, ignore Ctrl-C or a lost terminal, and so
# would the commands that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_sessionstart():
    """Forks all processes from one that has imported what most of them need.

    Otherwise it has only what the first test needs, and each process of the others begins with
    seconds of imports.
    """
    from evenly import child

    context = child.context
    child.context = lambda *_: context(*PRELOADED)


def pytest_collection_finish():
    """Spares Python's collector the modules and tests, which all stay until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.default_generator.manual_seed(0)  # a GPU's seed is put off, with a traceback each


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not at {folder}")
    return folder
