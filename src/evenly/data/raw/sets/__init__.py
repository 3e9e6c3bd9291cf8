"""Data sets from their official downloads."""

from evenly.data.raw.sets.av_mnist import av_mnist
from evenly.data.raw.sets.ave import ave
from evenly.data.raw.sets.cremad import cremad
from evenly.data.raw.sets.food101 import food101
from evenly.data.raw.sets.kinetics_sounds import kinetics_sounds
from evenly.data.raw.sets.mm_imdb import mm_imdb
from evenly.data.raw.sets.mmsa import mosei, sims
from evenly.data.raw.sets.mosi import mosi
from evenly.data.raw.sets.mvsa import mvsa
from evenly.data.raw.sets.official import Official
from evenly.data.raw.sets.ucf101 import ucf101
from evenly.data.raw.sets.vggsound import vggsound

_SOUND = {
    "front": "front end of the sound: fbank or mel, at 16 kHz, or stft, at 22,050 Hz",
    "seconds": "of sound; shorter clips are repeated",
}
_FRAMES = {"frames": "of each video", "size": "of a frame, height and width"}
_TEXT = {
    "size": "of a picture, height and width",
    "tokenizer": "of Transformers, by folder or name; without, words are numbered by the training "
    "texts",
    "length": "tokens after which a text is cut off",
}
_SCORED = {"task": "classes, or number: the score itself, to regress on"}
_MMSA = "https://github.com/thuiar/MMSA"

SETS: dict[str, Official] = {
    "cremad": Official(
        title="CREMA-D: six acted emotions, sound and video",
        modalities="audio (spectrogram), visual (frames)",
        samples="7,442: 5,954 / 744 / 744 in the paper's split",
        licence="Open Database License 1.0, contents Database Contents License 1.0",
        source="https://github.com/CheyneyComputerScience/CREMA-D (git lfs)",
        layout=("AudioWAV/1001_DFA_ANG_XX.wav", "VideoFlash/1001_DFA_ANG_XX.flv"),
        settings={"split": "paper, or actors: no actor in two parts", **_SOUND, **_FRAMES},
        build=cremad,
    ),
    "kinetics_sounds": Official(
        title="Kinetics-Sounds: 31 actions that are seen and heard",
        modalities="audio (spectrogram), visual (frames)",
        samples="14,799 training and 2,597 test clips are listed; those that are there are taken",
        licence="the videos belong to their YouTube authors; Kinetics' annotations are CC BY 4.0",
        source="Kinetics-400, https://github.com/cvdfoundation/kinetics-dataset; the lists of "
        "https://github.com/GeWu-Lab/OGM-GE_CVPR2022 (MIT) are built in",
        layout=("ID_000058_000068.mp4, ID_58.mp4 or ID.mp4, in folders or not",),
        settings={**_SOUND, **_FRAMES},
        build=kinetics_sounds,
    ),
    "ave": Official(
        title="AVE: 28 events that are seen and heard",
        modalities="audio (spectrogram), visual (frames)",
        samples="4,143: 3,339 / 402 / 402 in the official split",
        licence="not stated; the videos belong to their YouTube authors",
        source="https://github.com/YapengTian/AVE-ECCV18",
        layout=("trainSet.txt", "valSet.txt", "testSet.txt", "AVE/RUhOCu3LNXM.mp4"),
        settings={**_SOUND, **_FRAMES},
        build=ave,
    ),
    "vggsound": Official(
        title="VGGSound: 309 sounds whose source is seen",
        modalities="audio (spectrogram), visual (frames)",
        samples="183,730 training and 15,446 test clips are listed; those that are there are taken",
        licence="list CC BY 4.0; the videos belong to their YouTube authors",
        source="https://www.robots.ox.ac.uk/~vgg/data/vggsound/",
        layout=("vggsound.csv", "ID_000030.mp4 or ID_30.mp4, in folders or not"),
        settings={**_SOUND, **_FRAMES},
        build=vggsound,
    ),
    "food101": Official(
        title="UPMC Food-101: 101 dishes, a picture and the title of its page",
        modalities="image, text",
        samples="90,704: 67,988 for training, of which a part validates, and 22,716",
        licence="not stated; pictures and texts belong to their authors",
        source="https://www.kaggle.com/datasets/gianmarco96/upmcfood101",
        layout=(
            "texts/train_titles.csv",
            "texts/test_titles.csv",
            "images/train/apple_pie/apple_pie_0.jpg",
            "images/test/apple_pie/apple_pie_1.jpg",
        ),
        settings=_TEXT,
        build=food101,
    ),
    "mvsa": Official(
        title="MVSA: the sentiment of tweets with a picture",
        modalities="image, text",
        samples="4,511 (Single) or 17,024 (Multiple) with a label, 80 / 10 / 10 % drawn",
        licence="not stated; the tweets belong to their authors",
        source="https://mcrlab.net/research/mvsa-sentiment-analysis-on-multi-view-social-data/",
        layout=("labelResultAll.txt", "data/1.jpg", "data/1.txt"),
        settings={**_TEXT, "seed": "of the split"},
        build=mvsa,
    ),
    "mm_imdb": Official(
        title="MM-IMDb: several genres of a movie, by its poster and plot",
        modalities="image, text",
        samples="25,959: 15,552 / 2,608 / 7,799 in the official split, 23 labels",
        licence="not stated; posters and plots belong to their authors",
        source="http://lisi1.unal.edu.co/mmimdb/, or https://archive.org/details/mmimdb",
        layout=("split.json", "dataset/0000008.json", "dataset/0000008.jpeg"),
        settings=_TEXT,
        build=mm_imdb,
    ),
    "ucf101": Official(
        title="UCF-101: 101 actions, pictures and optical flow",
        modalities="rgb (frames), flow ([u, v, u] images)",
        samples="13,320: the three official splits, validation cut from train by group",
        licence="not stated; for research",
        source="https://www.crcv.ucf.edu/data/UCF101.php",
        layout=("UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",),
        settings={
            "split": "number of the official split: 1, 2 or 3",
            **_FRAMES,
            "flow": "dis or farneback",
        },
        build=ucf101,
    ),
    "mosi": Official(
        title="CMU-MOSI: opinions in text, sound and video",
        modalities="text, audio, video (sequences of features)",
        samples="2,199: 1,284 / 229 / 686 in the standard folds, no video in two",
        licence="for academic research; the videos belong to their YouTube authors",
        source=f"https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK, or the pickles of {_MMSA}",
        layout=(
            "CMU_MOSI_TimestampedWordVectors.csd",
            "CMU_MOSI_COVAREP.csd",
            "CMU_MOSI_Visual_Facet_42.csd",
            "CMU_MOSI_Opinion_Labels.csd",
            "or else unaligned_50.pkl",
        ),
        settings={**_SCORED, "classes": "2, negative or not; or 7, the rounded score"},
        build=mosi,
    ),
    "mosei": Official(
        title="CMU-MOSEI: opinions in text, sound and video",
        modalities="text, audio, video (sequences of features)",
        samples="22,856: 16,326 / 1,871 / 4,659",
        licence="for academic research; the videos belong to their YouTube authors",
        source=f"the pickles of {_MMSA}",
        layout=("unaligned_50.pkl", "or aligned_50.pkl"),
        settings={
            "aligned": "whether to read aligned_50.pkl, with one step for each word",
            **_SCORED,
            "classes": "2, negative or not; or 7, the rounded score",
        },
        build=mosei,
    ),
    "sims": Official(
        title="CH-SIMS: opinions in Chinese text, sound and video",
        modalities="text, audio, video (sequences of features)",
        samples="2,281: 1,368 / 456 / 457",
        licence="not stated; for research",
        source=f"the pickles of {_MMSA}",
        layout=("unaligned_39.pkl",),
        settings={
            "labels": "M, of all modalities together; T, A or V, of text, sound or video alone",
            **_SCORED,
            "classes": "2, positive or not; 3, with neutral; or 5, also weak or not",
        },
        build=sims,
    ),
    "av_mnist": Official(
        title="AV-MNIST: a handwritten and a spoken digit",
        modalities="audio (spectrogram), image",
        samples="70,000: 55,000 / 5,000 / 10,000",
        licence="MNIST CC BY-SA 3.0; Free Spoken Digit Dataset CC BY-SA 4.0",
        source="MNIST's four idx files, and recordings/ of "
        "https://github.com/Jakobovski/free-spoken-digit-dataset",
        layout=("train-images-idx3-ubyte.gz (and labels, and t10k)", "recordings/7_jackson_0.wav"),
        settings={"seconds": "of sound", "seed": "of the pairs of image and recording"},
        build=av_mnist,
    ),
}
"""Data sets by their name in `evenly prepare`."""

__all__ = [
    "SETS",
    "Official",
    "av_mnist",
    "ave",
    "cremad",
    "food101",
    "kinetics_sounds",
    "mm_imdb",
    "mosei",
    "mosi",
    "mvsa",
    "sims",
    "ucf101",
    "vggsound",
]
