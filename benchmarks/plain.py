"""Diagnosing & Re-learning as in the field's released code: the baseline of `whole.py`.

It is written from the published description, with the habits of that code but none of its mistakes:
a DataLoader's workers decode each sample's JPEG frames and sound again in every epoch; 32-bit
floats in the default layout; the loss read from the device in each step; predictions counted sample
by sample in Python; scikit-learn's k-means with ten starts.

From evenly it uses only the networks, which standardise their inputs themselves, so that both sides
have the same model.
"""

import copy
import time
import warnings
import wave

import numpy as np
import torch
import torch.nn.functional as F
from crema import CLASSES, RATE, SECONDS
from PIL import Image
from sklearn.cluster import KMeans
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers.audio_utils import mel_filter_bank

with warnings.catch_warnings():  # about the lowest bands, which contain no frequency
    warnings.simplefilter("ignore")
    BANDS = mel_filter_bank(257, 128, 20, RATE / 2, RATE, None, "kaldi", True)
FILTERS = torch.tensor(BANDS, dtype=torch.float32)


def spectrogram(path):
    """128 log mel bands by 298 frames."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    whole = torch.tensor(np.resize(samples, RATE * SECONDS)) / 32768
    frames = (whole - whole.mean()).unfold(0, 400, 160)
    frames = frames - frames.mean(1, keepdim=True)
    frames = torch.cat([frames[:, :1] * 0.03, frames[:, 1:] - 0.97 * frames[:, :-1]], 1)
    power = torch.fft.rfft(frames * torch.hann_window(400, periodic=False), 512).abs().square()
    return (power @ FILTERS).clamp_min(1.2e-7).log().T[None]


class Files(Dataset):
    """Reads one sample at a time from its files."""

    def __init__(self, clips, size):
        self.clips, self.size = clips, size

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, n):
        clip = self.clips[n]
        frames = []
        for number in range(2):
            with Image.open(clip.folder / f"{number}.jpg") as image:
                scaled = image.convert("RGB").resize(self.size, Image.Resampling.BILINEAR)
            frames.append(torch.from_numpy(np.array(scaled)).float().permute(2, 0, 1))
        return spectrogram(clip.folder / "sound.wav"), torch.stack(frames), clip.label


class Model(nn.Module):
    """A ResNet-18 for each modality, and one linear layer on both features."""

    def __init__(self, audio, visual):
        super().__init__()
        self.audio, self.visual = audio, visual
        self.head = nn.Linear(audio.out_features + visual.out_features, len(CLASSES))

    def forward(self, sound, frames):
        """Both modalities' features, and the logits."""
        a, v = self.audio(sound), self.visual(frames)
        return a, v, self.head(torch.cat([a, v], 1))


def train(clips, encoders, *, epochs, every, size, batch, lr, device, workers):
    """Trains, re-learns after `every` epochs, and tests the epoch with the best validation.

    Returns:
        Accuracy on the test split, optimiser steps, seconds.
    """
    start = time.perf_counter()
    torch.manual_seed(0)
    model = Model(*encoders).to(device)
    initial = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    splits = {
        name: Files([clip for clip in clips if clip.split == name], size)
        for name in ("train", "val", "test")
    }
    loaders = {
        # Workers stay alive, since epochs here are far shorter than those of the field's data sets.
        name: DataLoader(
            split,
            batch,
            shuffle=name == "train",
            num_workers=workers,
            persistent_workers=True,
            pin_memory=torch.device(device).type == "cuda",
        )
        for name, split in splits.items()
    }
    best, kept, steps = -1.0, None, 0
    for epoch in range(epochs):
        if epoch == every + 1:
            relearn(model, initial, splits, batch, device, workers)
        model.train()
        total = 0.0
        for sound, frames, label in loaders["train"]:
            sound, frames, label = sound.to(device), frames.to(device), label.to(device)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(sound, frames)[2], label)
            loss.backward()
            optimizer.step()
            total += loss.item()
            steps += 1
        accuracy = evaluate(model, loaders["val"], device)
        if accuracy > best:
            best, kept = accuracy, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    accuracy = evaluate(model, loaders["test"], device)
    return accuracy, steps, time.perf_counter() - start


def evaluate(model, loader, device):
    """The accuracy, counted class by class and sample by sample."""
    right, seen = [0.0] * len(CLASSES), [0.0] * len(CLASSES)
    model.eval()
    with torch.no_grad():
        for sound, frames, label in loader:
            probability = model(sound.to(device), frames.to(device))[2].softmax(1)
            for i in range(len(label)):
                guess = np.argmax(probability[i].cpu().numpy())
                seen[int(label[i])] += 1.0
                if int(label[i]) == guess:
                    right[int(label[i])] += 1.0
    return sum(right) / sum(seen)


def relearn(model, initial, splits, batch, device, workers):
    """The gap of each encoder's purities, and its soft re-initialisation."""
    purities = [
        purity_of(model, DataLoader(splits[name], batch, num_workers=workers), device)
        for name in ("train", "val")
    ]
    state = model.state_dict()
    for name, encoder in (("audio", model.audio), ("visual", model.visual)):
        alpha = np.tanh(3 * abs(purities[0][name] - purities[1][name]))
        for key, _ in encoder.named_parameters():
            whole = f"{name}.{key}"
            state[whole] = (1 - alpha) * state[whole] + alpha * initial[whole]
    model.load_state_dict(state)


def purity_of(model, loader, device):
    """The purity of k-means on each modality's features."""
    features, labels = {"audio": [], "visual": []}, []
    model.eval()
    with torch.no_grad():
        for sound, frames, label in loader:
            a, v, _ = model(sound.to(device), frames.to(device))
            for i in range(len(label)):
                features["audio"].append(a[i].cpu().numpy())
                features["visual"].append(v[i].cpu().numpy())
                labels.append(int(label[i]))
    found = {}
    for name, rows in features.items():
        x = np.stack(rows)
        low, high = x.min(0), x.max(0)
        x = 2 * (x - low) / np.maximum(high - low, 1e-12) - 1
        clusters = KMeans(len(CLASSES), n_init=10, random_state=0).fit_predict(x)
        counts = [[0] * len(CLASSES) for _ in CLASSES]
        for cluster, label in zip(clusters, labels, strict=True):
            counts[cluster][label] += 1
        found[name] = sum(max(row) for row in counts) / len(labels)
    return found
