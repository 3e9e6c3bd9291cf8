"""All that a run imports: the process that runs are forked from imports this, once for all of them.

What is imported stays: Python's collector is kept from going through it, here and in every run,
where it would also make copies of the memory that they share.
"""

import gc

gc.disable()

import torch._dynamo  # noqa: E402 by torch's optimisers, when they are made
import torch.utils.tensorboard  # noqa: E402, F401

import evenly.lab.run.run  # noqa: E402, F401

gc.freeze()
gc.enable()
