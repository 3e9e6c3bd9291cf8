"""Run by test_two_ranks.py in each of two processes: trains the toy and saves its weights.

Arguments: the adapter, the method, the folder.
"""

import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import toy
from torch.utils.data import DataLoader

import evenly

SAMPLES = 48  # two ranks, four samples each, six steps: no batch is padded


def with_lightning(name, folder):
    import lightning
    from test_lightning import Module

    lightning.seed_everything(3)  # the seed of the sampler that Lightning puts in
    module = Module(name)
    trainer = lightning.Trainer(
        max_epochs=toy.EPOCHS,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=[evenly.Balance(module.method, toy.forward)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    train, val = toy.loaders(SAMPLES)
    trainer.fit(
        module,
        DataLoader(train.dataset, batch_size=toy.BATCH // 2, shuffle=True),
        DataLoader(val.dataset, batch_size=toy.BATCH),
    )
    return module.net, module.method


def with_transformers(name, folder):
    import test_transformers

    trainer = test_transformers.trainer(
        name, folder, samples=SAMPLES, batch_size=toy.BATCH // 2, ddp_backend="gloo"
    )
    trainer.train()
    return trainer.model, trainer.method


if __name__ == "__main__":
    adapter, name, folder = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, method = {"lightning": with_lightning, "transformers": with_transformers}[adapter](
        name, folder
    )
    held = {"model": model.state_dict(), "epochs": list(getattr(method, "history", {}))}
    torch.save(held, Path(folder, f"rank{os.environ['RANK']}.pt"))
    dist.barrier()
    dist.destroy_process_group()
    # At once: torch's own threads can abort a process that takes its modules down in good order.
    os._exit(0)
