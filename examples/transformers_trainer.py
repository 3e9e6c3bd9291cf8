"""Diagnosing & Re-learning with the Transformers `Trainer`: another class and two arguments.

Run `python examples/transformers_trainer.py`: a few seconds, no download.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset
from transformers import TrainingArguments

import evenly
from evenly.integrations.transformers import BalancedTrainer

epochs = 25
batch_size = 64
learning_rate = 3e-3  # for AdamW, the Trainer's optimiser
noise = 1.0  # only on the lower half, the modality that is hard to learn
every = 8  # epochs: re-learns before epochs 9 and 17, from 0; the paper has 20, of 90

torch.manual_seed(0)

# Two modalities from handwritten digits of 8 x 8 pixels: the upper and the lower half.
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
top, bottom = images[:, :4].flatten(1), images[:, 4:].flatten(1)
bottom = bottom + noise * torch.randn_like(bottom)
data = TensorDataset(top, bottom, torch.tensor(digits.target))
train, val = torch.utils.data.random_split(data, [1347, 450])


def collate(rows):
    top, bottom, target = (torch.stack(column) for column in zip(*rows, strict=True))
    return {"top": top, "bottom": bottom, "labels": target}


class TwoHalves(nn.Module):
    def __init__(self):
        super().__init__()
        self.top = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.bottom = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, top, bottom):
        features = {"top": self.top(top), "bottom": self.bottom(bottom)}
        logits = self.head(torch.cat([features["top"], features["bottom"]], dim=1))
        return evenly.Output(logits, features)  # evenly: what a method may see


def forward(model, inputs):
    return model(inputs["top"], inputs["bottom"]), inputs["labels"]


def metrics(prediction):
    return {"accuracy": (prediction.predictions.argmax(1) == prediction.label_ids).mean()}


model = TwoHalves()
method = evenly.Relearn({"top": model.top, "bottom": model.bottom}, every=every)  # evenly: encoders
with tempfile.TemporaryDirectory() as folder:
    args = TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        learning_rate=learning_rate,
        remove_unused_columns=False,  # our rows are tuples; `collate` names the columns
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",  # with "epoch", each checkpoint's folder holds the method's state
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    trainer = BalancedTrainer(  # evenly: instead of Trainer, with the next two arguments
        method=method,  # evenly: its hooks are called
        forward=forward,  # evenly: (model, inputs) -> (Output, target)
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=val,
        data_collator=collate,
        compute_metrics=metrics,
    )
    trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"]

print(f"validation accuracy: {accuracy:.3f}")
for epoch, modalities in method.history.items():
    pulled = ", ".join(f"{name} {was['strength']:.2f}" for name, was in modalities.items())
    print(f"before epoch {epoch} the encoders went back to their start by: {pulled}")
print(method.diagnosis)  # the last one, from before that epoch
