import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from evenly.data import Padded, load_npz

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _one_thread():
    """Thousands of tiny operations, which several threads only slow down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def convert(shared_data, tmp_path, monkeypatch):
    """Runs a converter on the real data and loads what it wrote."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(name, *options, folder=None):
        module = __import__(f"convert_{name}")
        path = tmp_path / f"{name}.npz"
        module.main([*options, str(shared_data / (folder or name)), str(path)])
        assert path.stat().st_size < 40e6
        return load_npz(path)

    yield run
    for name in [name for name in sys.modules if name.startswith(("convert_", "_convert"))]:
        del sys.modules[name]


def _everything(data, name):
    split = data.split(name)
    return split.__getitems__(list(range(len(split))))


def _sizes(data):
    return [len(data.split(name)) for name in ("train", "val", "test")]


def _accuracy(data, names, splits, inverse=0.01):
    """Test accuracy of logistic regression on standardised vectors."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def read(*splits):
        batches = [_everything(data, split) for split in splits]
        x = torch.cat(
            [torch.cat([b["inputs"][name].flatten(1) for name in names], 1) for b in batches]
        )
        return x.numpy(), torch.cat([b["target"] for b in batches]).numpy()

    model = make_pipeline(StandardScaler(), LogisticRegression(C=inverse, max_iter=1000))
    return model.fit(*read(*splits)).score(*read("test"))


@pytest.mark.data
def test_cremad_votes(convert):
    data = convert("cremad_votes")
    assert _sizes(data) == [5954, 744, 744]
    assert data.class_names == ["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"]
    assert data.notes == []
    assert {m.name: (m.kind, m.shape) for m in data.modalities.values()} == {
        "audio": ("vector", (12,)),
        "visual": ("vector", (12,)),
    }
    x = _everything(data, "val")["inputs"]["audio"]
    torch.testing.assert_close(x[:, :6].sum(1), torch.ones(744))
    assert not x[:, 6:][x[:, :6] == 0].any()  # no votes, no level
    # The published baselines; two standard errors on 744 clips.
    for names, baseline in ((["audio"], 0.602), (["visual"], 0.741), (["audio", "visual"], 0.815)):
        assert _accuracy(data, names, ["train"]) == pytest.approx(baseline, abs=0.028)


@pytest.mark.data
def test_cmu_mosi(convert, shared_data):
    data = convert("cmu_mosi")
    train, val, test = _sizes(data)
    assert train == 1447
    assert val + test == 752
    assert 752 / 3 <= val < 752 / 3 + 60
    assert data.notes == []
    assert list(data.modalities) == ["text", "audio", "video"]
    with np.load(shared_data / "cmu_mosi" / "cmu_mosi_utterance.npz") as source:
        videos = [set(source["video_index"][data.split(s).rows]) for s in ("train", "val", "test")]
        assert np.array_equal(source["split_bclstm"][data.split("train").rows], np.zeros(1447))
    assert not videos[0] & videos[1]
    assert not (videos[0] | videos[1]) & videos[2]
    # The published baselines are for all 752; two standard errors of the part that is left.
    for names, baseline in (
        (["text"], 0.757),
        (["audio"], 0.561),
        (["video"], 0.517),
        (["text", "audio", "video"], 0.769),
    ):
        assert _accuracy(data, names, ["train"]) == pytest.approx(baseline, abs=0.045)


@pytest.mark.data
def test_cmu_mosi_as_numbers(convert, shared_data):
    data, classes = convert("cmu_mosi", "--task", "number"), convert("cmu_mosi")
    assert _sizes(data) == _sizes(classes)
    assert (data.task.names, data.task.scale) == (("sentiment",), "sentiment")
    with np.load(shared_data / "cmu_mosi" / "cmu_mosi_utterance.npz") as source:
        score = source["score"]
    for name in ("train", "val", "test"):
        part = data.split(name)
        assert part.target[:, 0].tolist() == score[part.rows].tolist()
        assert ((part.target[:, 0] >= 0) == (classes.split(name).target == 1)).all()


@pytest.mark.data
def test_cmu_mosi_words(convert, shared_data):
    data = convert("cmu_mosi_words", folder="cmu_mosi")
    assert _sizes(data) == [1284, 229, 686]
    assert {m.name: (m.kind, m.shape) for m in data.modalities.values()} == {
        "text": ("text", (50, 3109)),
        "audio": ("vector", (73,)),
    }
    with np.load(shared_data / "cmu_mosi" / "cmu_mosi_utterance.npz") as source:
        parts = [set(source["video_index"][data.split(s).rows]) for s in ("train", "val", "test")]
        assert [len(videos) for videos in parts] == [52, 10, 31]
        assert len(set.union(*parts)) == 93
        batch = data.split("test").__getitems__([0, 1, 2, 3])
        rows = data.split("test").rows[:4].numpy()
        assert batch["inputs"]["text"].length.tolist() == source["token_len"][rows].tolist()
    # The published baseline; two standard errors on 686 utterances.
    found = _accuracy(data, ["audio"], ["train", "val"], inverse=1)
    assert found == pytest.approx(0.557, abs=0.038)


@pytest.mark.data
def test_ravdess_av(convert, shared_data):
    data = convert("ravdess_av")
    assert _sizes(data) == [944, 240, 240]  # 16 of the 960 training clips have no sound
    assert (data.modalities["voice"].kind, data.modalities["voice"].shape) == (
        "image",
        (1, 64, 176),
    )
    assert (data.modalities["face"].kind, data.modalities["face"].shape) == ("vector", (35,))
    voice = _everything(data, "train")["inputs"]["voice"]
    assert voice.dtype == torch.uint8
    assert voice.flatten(1).any(1).all()
    with np.load(shared_data / "ravdess_av" / "ravdess_av.npz") as source:
        actor = source["actor"][source["has_audio"]]
    parts = [set(actor[data.split(name).rows].tolist()) for name in ("train", "val", "test")]
    assert parts == [set(range(1, 17)), set(range(17, 21)), set(range(21, 25))]


@pytest.mark.data
def test_av_digits(convert, shared_data):
    data = convert("av_digits")
    assert _sizes(data) == [6000, 1000, 1500]
    assert data.modalities["speech"].kind == "sequence"
    assert data.modalities["image"].shape == (1, 28, 28)
    batch = data.split("test").__getitems__([0, 1, 2, 3])
    speech = batch["inputs"]["speech"]
    assert isinstance(speech, Padded)
    with np.load(shared_data / "av_digits" / "av_digits.npz") as source:
        rows = data.split("test").rows[:4].numpy()
        samples = np.diff(source["wave_offset"])[source["pair_audio"][rows]]
        assert speech.length.tolist() == [1 + n // 128 for n in samples]
        images = source["image"][source["pair_image"][rows]]
        assert np.array_equal(batch["inputs"]["image"][:, 0], images)
        assert batch["target"].tolist() == source["pair_label"][rows].tolist()
        assert (
            batch["target"].tolist() == source["image_label"][source["pair_image"][rows]].tolist()
        )


@pytest.mark.data
def test_white_noise_fills_the_bands_of_av_digits(convert):
    data = convert("av_digits", "--snr", "-5")
    values = _everything(data, "val")["inputs"]["speech"]
    valid = torch.arange(values.values.shape[1]) < values.length[:, None]
    noisy = values.values.float()[valid]
    # Noise has no silence: the quietest band of a frame is near the loudest, unlike in speech.
    assert (noisy.max(1).values - noisy.min(1).values).median() < 25


@pytest.mark.data
def test_htad(convert):
    data = convert("htad")
    assert _sizes(data) == [831, 207, 348]
    assert len(data.class_names) == 7
    assert {m.name: (m.kind, m.shape) for m in data.modalities.values()} == {
        "audio": ("vector", (36,)),
        "accelerometer": ("vector", (16,)),
    }
    # The published baselines; two standard errors on 348 windows.
    for names, baseline in (
        (["audio"], 0.557),
        (["accelerometer"], 0.716),
        (["audio", "accelerometer"], 0.782),
    ):
        assert _accuracy(data, names, ["train"], inverse=1) == pytest.approx(baseline, abs=0.05)


@pytest.mark.data
def test_leaves(convert):
    data = convert("leaves")
    assert _sizes(data) == [1000, 200, 400]
    assert len(data.class_names) == 100
    assert list(data.modalities) == ["margin", "shape", "texture"]
    assert {(m.kind, m.shape) for m in data.modalities.values()} == {("vector", (64,))}
    # The published baselines; two standard errors on 400 leaves.
    for names, baseline in (
        (["margin"], 0.815),
        (["shape"], 0.657),
        (["texture"], 0.818),
        (["margin", "shape", "texture"], 0.978),
    ):
        assert _accuracy(data, names, ["train"], inverse=1) == pytest.approx(baseline, abs=0.045)


@pytest.mark.data
def test_watch_exercises(convert, shared_data):
    data = convert("watch_exercises")
    assert _sizes(data) == [1044, 397, 392]
    assert list(data.modalities) == ["accelerometer", "gyroscope"]
    assert {(m.kind, m.shape) for m in data.modalities.values()} == {("sequence", (128, 3))}
    with np.load(shared_data / "watch_exercises" / "watch_exercises.npz") as source:
        subject = source["subject"]
    parts = [set(subject[data.split(name).rows].tolist()) for name in ("train", "val", "test")]
    assert parts == [set(range(1, 7)), {7, 8}, {9, 10}]
    # The published baselines of all 384 numbers each; two standard errors on 392 windows.
    for names, baseline in ((["accelerometer"], 0.574), (["accelerometer", "gyroscope"], 0.727)):
        assert _accuracy(data, names, ["train"]) == pytest.approx(baseline, abs=0.05)


@pytest.mark.data
@pytest.mark.parametrize(("options", "words"), [([], "tokens_blind"), (["--named"], "tokens")])
def test_emoji_tags(convert, shared_data, options, words):
    data = convert("emoji_tags", *options)
    assert _sizes(data) == [1334, 190, 382]
    with np.load(shared_data / "emoji_tags" / "emoji_tags.npz") as source:
        assert {m.name: (m.kind, m.shape) for m in data.modalities.values()} == {
            "image": ("image", (3, 64, 64)),
            "tags": ("text", (17, int(source[words].max()) + 1)),
        }
        parts = [set(source["group"][data.split(s).rows]) for s in ("train", "val", "test")]
        assert len(set.union(*parts)) == sum(map(len, parts))
        batch = data.split("test").__getitems__([0, 1, 2, 3])
        rows = data.split("test").rows[:4].numpy()
        assert np.array_equal(batch["inputs"]["image"], source["image"][rows])
        assert batch["inputs"]["tags"].length.tolist() == source[f"{words}_len"][rows].tolist()
        assert batch["target"].tolist() == source["label"][rows].tolist()


@pytest.fixture
def av_digits(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import convert_av_digits

    yield convert_av_digits
    for name in ("convert_av_digits", "_convert"):
        del sys.modules[name]


def test_a_tone_is_loudest_in_its_band(av_digits):
    filters = av_digits.mel_filters()
    assert filters.shape == (32, 257)
    assert (filters.sum(1) > 0).all()
    for hertz in (200.0, 1000.0, 3000.0):
        tone = torch.sin(2 * torch.pi * hertz * torch.arange(8000) / 8000)
        frames = av_digits.log_mel(tone, filters)
        assert frames.shape == (63, 32)
        middle = int(hertz * 512 / 8000)
        assert frames[30].argmax() == filters[:, middle].argmax()
    assert av_digits.log_mel(torch.zeros(2000), filters).eq(-100).all()


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_noise_has_the_ratio_asked_for(av_digits, snr):
    wave = 0.1 * torch.sin(torch.arange(200_000) / 7)
    noise = av_digits.add_noise(wave, snr, torch.Generator().manual_seed(0)) - wave
    ratio = 10 * torch.log10(wave.square().mean() / noise.square().mean())
    assert ratio.item() == pytest.approx(snr, abs=0.1)


def test_a_missing_source_is_explained(av_digits, tmp_path, capsys):
    with pytest.raises(SystemExit):
        av_digits.main([str(tmp_path), str(tmp_path / "out.npz")])
    assert "av_digits.npz is not there. Give the folder that holds" in capsys.readouterr().err


def test_as_a_table(tmp_path, monkeypatch):
    """Vectors, sequences of unequal lengths and pictures come back as they were."""
    from evenly.data import save_npz
    from evenly.data.raw import prepare, table
    from evenly.data.store import open_store

    monkeypatch.syspath_prepend(str(EXAMPLES))
    import as_table

    draws = np.random.default_rng(0)
    arrays = {
        "x": draws.normal(size=(12, 3)).astype(np.float32),
        "eye": draws.integers(256, size=(12, 3, 8, 8)).astype(np.uint8),
        "steps": draws.normal(size=(18, 2)).astype(np.float32),
        "steps_offset": np.array([0, *np.cumsum([1, 2] * 6)]),
    }
    save_npz(tmp_path / "a.npz", np.arange(12) % 2, np.repeat([0, 1, 2], 4), arrays, ["no", "yes"])
    out = tmp_path / "a.parquet"
    monkeypatch.setattr(sys, "argv", ["as_table.py", str(tmp_path / "a.npz"), str(out)])
    as_table.main()
    prepare(table(out), tmp_path / "store", workers=1)
    before, after = load_npz(tmp_path / "a.npz"), open_store(tmp_path / "store")
    assert after.class_names == before.class_names
    for split in ("train", "val", "test"):
        one, other = _everything(before, split), _everything(after, split)
        assert torch.equal(one["target"], other["target"])
        for name, x in one["inputs"].items():
            y = other["inputs"][name]
            if isinstance(x, Padded):
                assert torch.equal(x.length, y.length)
                x, y = x.values, y.values
            assert torch.equal(x, y)


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(24) / 4,
        np.arange(48).reshape(24, 2) / 4,
        np.resize([[1, 0], [0, 1], [1, 1], [0, 0]], (24, 2)) > 0,
    ],
)
def test_other_tasks_as_a_table(tmp_path, monkeypatch, labels):
    from evenly.data import save_npz
    from evenly.data.raw import table

    monkeypatch.syspath_prepend(str(EXAMPLES))
    import as_table

    names = ["a", "b"] if labels.ndim > 1 else ["a"]
    save_npz(tmp_path / "a.npz", labels, np.repeat([0, 1, 2], 8), {"x": np.ones((24, 3))}, names)
    out = tmp_path / "a.parquet"
    monkeypatch.setattr(sys, "argv", ["as_table.py", str(tmp_path / "a.npz"), str(out)])
    as_table.main()
    found = table(out)
    assert found.task.name == load_npz(tmp_path / "a.npz").task.name
    assert found.target.tolist() == labels.reshape(24, -1).astype(float).tolist()
    assert found.classes == (["number"] if names == ["a"] else names)


def test_word_numbers_are_no_table(tmp_path, monkeypatch, capsys):
    from evenly.data import save_npz

    monkeypatch.syspath_prepend(str(EXAMPLES))
    import as_table

    arrays = {"said": np.arange(24), "said_offset": np.arange(0, 25, 2), "said_kind": "text"}
    save_npz(tmp_path / "a.npz", np.arange(12) % 2, np.repeat([0, 1, 2], 4), arrays)
    monkeypatch.setattr(sys, "argv", ["as_table.py", str(tmp_path / "a.npz"), "a.parquet"])
    with pytest.raises(SystemExit):
        as_table.main()
    assert "said of" in (said := capsys.readouterr().err)
    assert "a table has no form" in said


def test_breast_cancer(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    path = tmp_path / "b.npz"
    __import__("convert_breast_cancer").main([str(path)])
    data = load_npz(path)
    assert list(data.modalities) == ["mean", "deviation", "worst"]
    assert _sizes(data) == [341, 113, 115]
    assert data.class_names == ["malignant", "benign"]
    assert _accuracy(data, list(data.modalities), ["train", "val"]) > 0.93
