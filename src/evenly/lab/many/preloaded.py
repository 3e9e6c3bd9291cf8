"""All that a run imports, done once in the process that all runs are forked from.

Imported objects stay: Python's collector skips them, here and in every run, where going through
them would also copy shared memory.
"""

import gc

gc.disable()

import torch._dynamo  # noqa: E402 by torch's optimisers, when they are made
import torch.utils.tensorboard  # noqa: E402, F401

import evenly.lab.run.run  # noqa: E402, F401

gc.freeze()
gc.enable()
