"""Cuts what the tests need out of the recordings of the authors' code, so that no number is typed.

python tests/golden/extract.py [FOLDER]    # of the .npz files; ../shared/data/golden by default

NAME.npz becomes NAME.json here: whose code ran, at which commit, on what, and the arrays in full
precision. An array that several files need is in shared.json, and they have its key there.
"""

import json
import sys
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RECORDED = HERE.parents[2] / "shared" / "data" / "golden"

AGM = "lihong2303/AGM_ICCV2023", "5a65542"
DGL = "shicaiwei123/ICCV2025-GDL", "b72a55f"
MMPARETO = "GeWu-Lab/MMPareto_ICML2024", "a339db3"
OGM = "GeWu-Lab/OGM-GE_CVPR2022", "343dc1d"
RUN = ("weights/*", "hyper/*")
STEP = (*RUN, "step0/*")

# By name: repository, commit, what was run, and which arrays are kept.
WANTED = {
    "agm": (
        *AGM,
        "two steps with SGD on a pair of convolutions and a linear layer",
        (*RUN, "step[01]/*"),
    ),
    "agm_alpha15": (*AGM, "a step with α = 1.5 on a pair of convolutions and a linear layer", STEP),
    "agm_batchnorm": (*AGM, "a step on a pair of convolutions with BatchNorm", STEP),
    "cggm": (
        "zrguo/CGGM",
        "21e428c",
        "its rule for the coefficients on seven changes of accuracy, and two steps on three "
        "linear encoders with the accuracies of its classifiers given",
        (*RUN, "step[01]/*", "lam0/step[01]/*", "lam02/step1/*", "rule/*"),
    ),
    "cml": (
        "QingyangZhang/CML",
        "9d2496e",
        "its penalty and the gradients of it on logits of three nested sets of modalities",
        ("*",),
    ),
    "dgl": (*DGL, "a step on a pair of convolutions and a linear layer", STEP),
    "dgl_sum": (*DGL, "a step on a pair of convolutions and two layers that are added", STEP),
    "film": (*OGM, "its FiLM layer on given features", ("input/*", "label", "film_x/*")),
    "g_blending": (
        "pliang279/MultiBench",
        "49f9be2",
        "its weights from losses before and after a training: where all gain, where one loses, "
        "where the fused one loses",
        ("*",),
    ),
    "lfm": (
        "njustkmg/NeurIPS24-LFM",
        "ad44fa0",
        "its loss and gradients at one weight of the alignment, its schedule over 200 epochs, its "
        "divergence on logits of three modalities, and one update of a learnt weight",
        (*STEP, "weight1/*", "schedule/alignment_weight", "three/*", "learnable/from_0.5/after"),
    ),
    "mcr": (
        "kkontras/MCR",
        "",  # not noted
        "its three games on a pair of perceptrons and a linear layer, the permutations given; "
        "lines copied by hand for the run",
        (*STEP, "*/value", "*/grad/encoders.audio.*", "*/grad/head.*"),
    ),
    "mla": (
        "Cecile-hi/Multimodal-Learning-with-Alternating-Unimodal-Adaptation",
        "ab6c184",
        "the first batch, a step for each of two modalities, as released and with two faults "
        "repaired",
        (
            *STEP,
            "released/update[01]/grad_*/*",
            "name_and_denominator_repaired/update[01]/*",
            "name_repaired/update1/projection",
            "inference/weight/*",
            "inference/logits/*",
        ),
    ),
    "mmcosine": ("GeWu-Lab/MMCosine_ICASSP23", "00ba0a9", "a step on a pair of perceptrons", STEP),
    "mmpareto": (*MMPARETO, "a step on a pair of convolutions, the gradients agreeing", STEP),
    "mmpareto_conflict": (
        *MMPARETO,
        "a step on a pair of convolutions, the gradients in conflict",
        STEP,
    ),
    "mslr": (
        *AGM,
        "its factors over 30 epochs from two given courses of accuracy",
        ("series_*", "hyper/*"),
    ),
    "ogm": (*OGM, "a step on a pair of convolutions and a linear layer", STEP),
    "ogm_ge": (*OGM, "a step on a pair of convolutions and a linear layer, the noise given", STEP),
    "ogm_sum": (*OGM, "a step on a pair of convolutions and two layers that are added", STEP),
    "opm": (
        "GeWu-Lab/BML_TPAMI2024",
        "4b3aa4f",
        "its dropping rates for 40 pairs of scores, and a step on a pair of perceptrons, a syntax "
        "error repaired and what is dropped given",
        ("score", "drop_rate", *STEP),
    ),
    "reconboost": (
        "huacong/ReconBoost",
        "14ab57a",
        "the losses of the first eight steps on a pair of perceptrons: a stage and the beginning "
        "of the next, as released and with the gradient of the agreement",
        (*RUN, "step[0-7]/*", "*/loss"),
    ),
    "remix": (
        "MatthewMaxy/Remix_ICML2025",
        "80898aa",
        "its assignment of 16 samples, and the loss and gradients in the warm-up and on a batch of "
        "one modality, on a pair of perceptrons",
        (*STEP, "assignment/*", "all/loss", "all/grad/head.*", "visual/*"),
    ),
}
# What nothing compares, or what another array, of the other modality for example, tells as well.
VISUAL = "*/grad/encoders.visual*"
UNUSED = {
    "*": ("step?/after/*", "*/released/grad/*visual*", "step0/logits", "step0/logits/*"),
    "agm": ("step1/grad/encoders.visual*",),
    "agm_alpha15": ("*/grad/enc*",),
    "agm_batchnorm": (f"{VISUAL}conv1*",),
    "cggm": ("lam*/grad/encoders.[av]*", "lam02/*/accuracy/*", "lam02/*/coefficient/*"),
    "dgl": (VISUAL,),
    "dgl_sum": (VISUAL,),
    "g_blending": ("*/raw", "*_lost/delta_false/*"),
    "lfm": (VISUAL,),
    "mla": ("name_and*/update0/grad_before/*", "name_and*/update0/projection"),
    "mmcosine": (VISUAL,),
    "mmpareto": (VISUAL,),
    "opm": (VISUAL,),
    "remix": ("all/logits", "visual/logits"),
}


def wanted(folder, name):
    """The arrays of a recording that are kept, by name."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        return {
            key: file[key]
            for key in file.files
            if matches(key, WANTED[name][-1])
            and not matches(key, UNUSED["*"] + UNUSED.get(name, ()))
        }


def main(folder=RECORDED):
    found = {name: wanted(Path(folder), name) for name in WANTED}
    times = Counter(identity(x) for arrays in found.values() for x in arrays.values())
    shared, keys = {}, {}
    for name, (repository, commit, ran, _) in WANTED.items():
        arrays = {}
        for key, x in found[name].items():
            arrays[key] = x.tolist()
            if x.size > 1 and times[identity(x)] > 1:
                arrays[key] = keys.setdefault(identity(x), f"{name}/{key}")
                shared[arrays[key]] = x.tolist()
        facts = {"repository": repository, "commit": commit, "ran": ran}
        write(f"{name}.json", {**facts, "arrays": arrays})
    write("shared.json", shared)


def matches(key, patterns):
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def identity(x):
    return x.dtype.str, x.shape, x.tobytes()


def write(name, content):
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (HERE / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
