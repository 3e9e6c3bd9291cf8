"""Run by test_many_ranks.py in each of several processes: trains and saves what each run gave.

Arguments: the adapter, the folder.
"""

import os
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

sys.path.append(str(Path(__file__).parents[1]))

import evenly
from many_ranks import BATCH, EPOCHS, Straight, splits, whole
from support import forward, info, make, sgd

# By what an adapter has to do for them: nothing, a probe whose findings write weights, gradients by
# themselves, reduced ones, a refusal of shards, batches again, an order of samples.
NAMED = ("joint", "relearn", "ogm_ge", "mmpareto", "lfm", "mla", "smv")
RESUMED = ("relearn", "smv")
ON_FOUR = ("mmpareto", *RESUMED)  # the first reduces gradients


def with_lightning(folder):
    """By strategy and method, the weights after training, or the text of what was raised."""
    import lightning

    lightning.seed_everything(3)  # the seed of the sampler that Lightning puts in
    found = {}
    for strategy in ("ddp", "fsdp"):
        for case in NAMED if os.environ["WORLD_SIZE"] == "2" else ON_FOUR:
            try:
                found[strategy, case] = trained(strategy, case, folder)
            except ValueError as error:
                found[strategy, case] = str(error)
        for case in RESUMED:
            found[strategy, case, "resumed"] = trained(strategy, case, folder, resume=True)
    for case in RESUMED if os.environ["WORLD_SIZE"] != "2" else ():
        found["fsdp", case, "from two"] = trained("fsdp", case, folder, resume=True, saved_by=2)
    try:
        trained("ddp", "smv", folder, ranks=1)
    except ValueError as error:
        found["few"] = str(error)
    found["fsdp", "relearn", "one file"] = trained("fsdp", "relearn", folder, one_file=True)
    found["fsdp", "relearn", "one file", "resumed"] = trained(
        "fsdp", "relearn", folder, one_file=True, resume=True
    )
    return found


def trained(strategy, case, folder, *, resume=False, saved_by=None, one_file=False, ranks=None):
    """The weights of a run through Lightning's Trainer, resumed from its second epoch's end.

    `saved_by` is the number of ranks that left the checkpoint, `ranks` are those that the sampler
    knows of.
    """
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dataset, val = splits()
    sampler = evenly.Resampler(dataset, ranks or world, 0 if ranks else rank, seed=3)
    # DDP gives every rank rank 0's weights; FSDP takes each rank's part as it is.
    module = module_of(case, rank if strategy == "ddp" else 0, sampler)
    own = hasattr(module.method, "sampler") or module.method.repeats > 1
    strategies = {
        "ddp": lambda: DDPStrategy(find_unused_parameters=info(case).partial),
        "fsdp": lambda: ModelParallelStrategy(world, 1, save_distributed_checkpoint=not one_file),
    }
    folder = Path(folder, f"{strategy}-{case}-{saved_by or world}-{one_file}")
    callbacks = [evenly.Balance(module.method, forward)]
    if case in RESUMED and not resume:
        callbacks.append(
            ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        )
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=world,
        strategy=strategies[strategy](),
        callbacks=callbacks,
        use_distributed_sampler=not own,
        logger=False,
        enable_checkpointing=len(callbacks) > 1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    batches = evenly.Repeated(sampler, BATCH // world, repeats=module.method.repeats)
    trainer.fit(
        module,
        DataLoader(dataset, batch_sampler=batches)
        if own
        else DataLoader(dataset, BATCH // world, shuffle=True),
        DataLoader(val, 5),
        ckpt_path=folder / "epoch=1.ckpt" if resume else None,
        weights_only=True if resume else None,
    )
    return {name: whole(value) for name, value in module.model.state_dict().items()}


def module_of(case, seed, sampler):
    import lightning
    from torch.distributed.fsdp import fully_shard

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Straight(seed, info(case).head)
            self.method = make(case, self.model, None, sampler)

        def configure_model(self):
            if self.device_mesh is not None:
                for part in (*self.model.encoders.values(), self.model):
                    fully_shard(part, mesh=self.device_mesh["data_parallel"])

        def forward(self, *inputs):
            return self.model(*inputs)

        def training_step(self, batch, batch_idx):
            return self.method.loss(*forward(self, batch))

        def validation_step(self, batch, batch_idx):
            forward(self, batch)

        def configure_optimizers(self):
            return sgd(self.model)

    return Module()


def with_transformers(folder):
    """By method, the weights after training, and when it re-learned."""
    import test_transformers
    import toy

    found = {}
    for name in ("joint", "relearn", "ogm_ge"):
        each = toy.BATCH // int(os.environ["WORLD_SIZE"])
        # six steps, so that no batch is padded
        trainer = test_transformers.trainer(
            name, folder, samples=48, batch_size=each, ddp_backend="gloo"
        )
        trainer.train()
        epochs = list(getattr(trainer.method, "history", {}))
        found[name] = {"model": trainer.model.state_dict(), "epochs": epochs}
    return found


if __name__ == "__main__":
    adapter, folder = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        found = {"lightning": with_lightning, "transformers": with_transformers}[adapter](folder)
        file = f"{adapter}-{os.environ['RANK']}-of-{os.environ['WORLD_SIZE']}.pt"
        torch.save(found, Path(folder, file))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    # At once: torch's own threads can abort a process that takes its modules down in good order.
    os._exit(0)
