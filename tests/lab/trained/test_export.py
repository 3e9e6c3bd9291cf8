import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from evenly.cli import main
from evenly.data import Padded
from evenly.data.tasks import Classes
from evenly.lab.run.build import made_encoders
from evenly.lab.run.settings import Cell, Training
from evenly.lab.run.stored import Stored
from evenly.lab.trained.export import ABOUT, export
from evenly.lab.trained.predict import Trained
from evenly.nn import HEADS, LateFusion

SMALL = "hidden_size: 32,intermediate_size: 64,num_attention_heads: 2,num_hidden_layers: 1"
WAVE = (
    "conv_dim: [16,16],conv_stride: [5,2],conv_kernel: [10,3],num_conv_pos_embeddings: 8,"
    "num_conv_pos_embedding_groups: 2"
)
WHISPER = (
    "d_model: 32,encoder_attention_heads: 2,encoder_ffn_dim: 64,encoder_layers: 1,"
    "decoder_layers: 1,decoder_ffn_dim: 64,decoder_attention_heads: 2,max_source_positions: 50"
)


def auto(kind, sizes, processor=""):
    return f"auto(pretrained={{model: {{model_type: {kind},{sizes}}},processor: {{{processor}}}}})"


EVERY = {
    "vector": ("vector", (5,), "float32", False, ""),
    "facts": ("vector", (5,), "float32", False, ""),
    "steps": ("sequence", (6, 3), "float32", False, ""),
    "my steps": ("sequence", (6, 3), "float16", True, ""),
    "text": ("text", (6, 40), "int32", True, ""),
    "image": ("image", (3, 12, 16), "uint8", False, ""),
    "spectrum": ("image", (1, 40, 32), "float16", False, ""),
    "video": ("video", (2, 3, 8, 8), "uint8", False, ""),
    "resnet18 of a video": ("video", (2, 1, 20, 20), "uint8", False, "resnet18"),
    "pictures": ("video", (4, 3, 8, 8), "uint8", True, ""),
    "resnet18 of pictures": ("video", (4, 1, 20, 20), "uint8", True, "resnet18"),
    "vit of pictures": (
        "video", (4, 3, 32, 32), "uint8", True, f"vit(config={{{SMALL},patch_size: 16}})"
    ),
    "clip of pictures": ("video", (4, 3, 32, 32), "uint8", True,
                         auto("clip_vision_model", f"{SMALL},image_size: 32,patch_size: 16")),
    "transformer": ("sequence", (6, 3), "float32", False, "transformer(width=32,layers=1)"),
    "transformer of texts": ("text", (6, 40), "int64", True, "transformer(width=32,layers=1)"),
    "ast": ("image", (1, 32, 40), "float16", False, f"ast(config={{{SMALL}}})"),
    "vit": ("image", (3, 32, 32), "uint8", False, f"vit(config={{{SMALL},patch_size: 16}})"),
    "vit of a video": (
        "video", (2, 3, 32, 32), "uint8", False, f"vit(config={{{SMALL},patch_size: 16}})"
    ),
    "bert": (
        "text", (6, 40), "int32", True, f"bert(config={{{SMALL},max_position_embeddings: 24}})"
    ),
    "wav2vec": ("sequence", (90, 1), "float32", False, f"wav2vec(config={{{SMALL},{WAVE}}})"),
    "wav2vec of lengths": (
        "sequence", (90, 1), "float16", True, f"wav2vec(config={{{SMALL},{WAVE}}})"
    ),
    "clip": ("image", (3, 32, 32), "uint8", False,
             auto("clip_vision_model", f"{SMALL},image_size: 32,patch_size: 16")),
    "clip of texts": ("text", (6, 40), "int32", True,
                      auto("clip_text_model", f"{SMALL},max_position_embeddings: 24")),
    "hubert": ("sequence", (90, 1), "float16", True,
               auto("hubert", f"{SMALL},{WAVE}", "normalise: true")),
    "whisper": ("sequence", (900, 1), "float16", False, auto("whisper", WHISPER)),
}  # fmt: skip
"""By encoder: kind, shape and type of what it takes, whether of unequal lengths, and its name."""
READ = {"facts": "tabular(numbers=[a,b],lacking=[b],categories=[c],values=[[d]])"}
"""By encoder that takes columns of a table, how they were read."""


def made(names, head="concat"):
    """A run that was never trained."""
    torch.manual_seed(0)
    stored = {}
    for name in names:
        kind, shape, dtype, ragged, _ = EVERY[name]
        width = 0 if kind == "text" else shape[-3 if kind in ("image", "video") else -1]
        stored[name] = Stored(kind, list(shape), width, dtype, ragged, 0.0, 0.0)
    own = {name: EVERY[name][-1] for name in names if EVERY[name][-1]}
    cell = Cell(Training(encoders=own, width=32), "joint", 0)
    modalities = {name: known.modality(name, READ.get(name, "")) for name, known in stored.items()}
    encoders = made_encoders(modalities, cell)
    return run(LateFusion(encoders, 3, head), stored)


def run(model, stored):
    return Trained(Path("run"), model.eval(), stored, Classes(["a", "b", "c"]), {}, [], {}, {}, [])


def batch(name, count, steps=None):
    kind, shape, dtype, ragged, _ = EVERY[name]
    shape = shape if steps is None or kind not in ("sequence", "text") else (steps, *shape[1:])
    if kind == "text":
        shape = (min(shape[0], 24), shape[1])  # as many as BERT takes
        values = torch.randint(1, shape[1], (count, shape[0]))
    else:
        values = torch.randint(0, 255, (count, *shape)) / (1 if dtype == "uint8" else 100)
    values = values.to(getattr(torch, dtype))
    return Padded(values, torch.arange(count) % shape[0] + 1) if ragged else values


def about(path):
    """What a program says of itself."""
    extra = {ABOUT: ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra[ABOUT])


def agrees(trained, tmp_path, sizes):
    export(trained, tmp_path / "m.pt2")
    program = torch.export.load(tmp_path / "m.pt2").module()
    for count, steps in sizes:
        inputs = {name: batch(name, count, steps) for name in trained.modalities}
        given = {k: tuple(x) if isinstance(x, Padded) else x for k, x in inputs.items()}
        with torch.no_grad():
            wanted = trained.model(inputs).logits
        torch.testing.assert_close(program(given), wanted, rtol=1e-4, atol=1e-5)
    return program


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("vector", "facts", "steps", "my steps", "text", "image", "spectrum", "video"),
        ("resnet18 of a video",),
        ("pictures", "resnet18 of pictures", "vit of pictures", "clip of pictures"),
        ("transformer", "transformer of texts"),
        ("ast", "vit", "vit of a video", "bert"),
        ("wav2vec",),
        ("wav2vec of lengths",),
        ("clip", "clip of texts", "whisper"),
        ("hubert",),
    ],
)
def test_every_encoder_for_any_number_of_samples_and_steps(names, tmp_path):
    few = 30 if "wav2vec" in names else 4  # samples of sound that make two tokens
    agrees(made(names), tmp_path, [(3, None), (1, None), (5, few), (1, few), (2, 121)])


def test_all_encoders_are_here():
    from evenly.nn import ENCODERS

    torch.manual_seed(0)
    found = {type(encoder) for name in EVERY for encoder in made([name]).model.encoders.values()}
    assert found == set(ENCODERS.values())


@pytest.mark.slow
@pytest.mark.parametrize("head", [name for name in HEADS if name not in ("mbt", "mult")])
def test_every_head(head, tmp_path):
    names = ("vector", "steps", "image") if head == "mmtm" else ("vector", "facts")
    agrees(made(names, head), tmp_path, [(3, None), (1, None)])


def test_a_head_that_learns_what_stands_in_for_a_missing_modality(tmp_path):
    trained = made(("vector", "spectrum"))
    trained.model.head.learn_missing()
    agrees(trained, tmp_path, [(3, None), (1, None)])


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mbt", "mult"])
def test_every_head_of_tokens(head, tmp_path):
    names = ("vit", "wav2vec of lengths") if head == "mult" else ("vit", "ast")
    agrees(made(names, head), tmp_path, [(3, None), (1, None), (1, 25)])


@pytest.mark.slow
def test_a_program_has_the_bounds_of_its_encoders(tmp_path):
    program = agrees(made(["bert"]), tmp_path, [(2, 24), (1, 1)])
    with pytest.raises(Exception, match="<= 24"):
        program({"bert": (torch.ones(2, 25, dtype=torch.int32), torch.tensor([25, 3]))})
    assert about(tmp_path / "m.pt2")["modalities"]["bert"]["longest"] == 24


def test_a_program_says_where_its_encoder_stops_listening(tmp_path):
    """Whisper's hears 2 x 50 positions of 160 samples each, and cuts off what is longer."""
    export(made(["whisper"]), tmp_path / "m.pt2")
    known = about(tmp_path / "m.pt2")["modalities"]["whisper"]
    assert (known["shape"], known["longest"]) == ([None, 1], 16000)


def test_a_run_that_has_not_finished_is_exported_with_a_note(tmp_path, capsys):
    export(replace(made(["vector"]), notes=["run has no result.json."]), tmp_path / "m.pt2")
    assert "note: run has no result.json." in capsys.readouterr().err


@pytest.mark.slow
def test_a_program_for_samples_that_lack_a_modality(tmp_path):
    trained = made(("vector", "my steps", "image", "text"))
    export(trained, tmp_path / "m.pt2", without=["vector", "text"])
    program = torch.export.load(tmp_path / "m.pt2").module()
    inputs = {name: batch(name, 3) for name in ("my steps", "image")}
    given = {k: tuple(x) if isinstance(x, Padded) else x for k, x in inputs.items()}
    with torch.no_grad():
        wanted = trained.model(inputs).logits
    torch.testing.assert_close(program(given), wanted, rtol=1e-4, atol=1e-5)
    steps = {"shape": [None, 3], "dtype": "float16", "ragged": True, "longest": None}
    image = {"shape": [3, 12, 16], "dtype": "uint8", "ragged": False, "longest": None}
    assert about(tmp_path / "m.pt2") == {
        "modalities": {"my steps": steps, "image": image},
        "task": "classes",
        "names": ["a", "b", "c"],
    }


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (["vectr"], "unknown modality 'vectr' of run"),
        (["vector", "image"], "--without leaves none"),
    ],
)
def test_what_cannot_be_left_out_is_said(tmp_path, without, said):
    with pytest.raises(ValueError, match=said):
        export(made(["vector", "image"]), tmp_path / "m.pt2", without=without)
    assert not list(tmp_path.iterdir())


class Flat(nn.Module):
    """An encoder of one's own for sequences of one length."""

    out_features = 4

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(18, 4)

    def forward(self, x):
        return self.net(x.flatten(1))


class Recurrent(nn.Module):
    """An encoder of one's own for sequences of any length."""

    out_features = 4

    def __init__(self):
        super().__init__()
        self.net = nn.GRU(3, 4, batch_first=True)

    def forward(self, x):
        return self.net(x)[1][0]


@pytest.mark.parametrize("kind", [Flat, Recurrent])
def test_encoders_of_ones_own_get_what_they_were_trained_on(kind, tmp_path):
    trained = made(["steps"])
    own = run(LateFusion({"steps": kind()}, 3), trained.modalities)
    agrees(own, tmp_path, [(3, None), (1, None)])


def test_an_encoder_of_ones_own_that_cannot_take_new_data_is_named():
    own = run(LateFusion({"steps": Flat()}, 3), made(["steps"]).modalities)
    assert own.answers({"steps": torch.zeros(2, 6, 3)}).shape == (2, 3)
    with pytest.raises(ValueError, match=r"your own encoders Flat, cannot take this data"):
        own.answers({"steps": torch.zeros(2, 7, 3)})


class Deciding(nn.Module):
    """An encoder that looks at values, which a program cannot."""

    out_features = 4

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(5, 4)

    def forward(self, x):
        return self.net(x) if x.sum() > 0 else self.net(-x)


def test_what_cannot_be_exported_is_said(tmp_path):
    trained = made(["vector"])
    own = run(LateFusion({"vector": Deciding()}, 3), trained.modalities)
    with pytest.raises(
        RuntimeError, match=r"cannot trace its model, with the encoders Deciding \("
    ):
        export(own, tmp_path / "m.pt2")
    assert not (tmp_path / "m.pt2").exists()


def test_a_program_needs_a_name_of_its_own(tmp_path):
    with pytest.raises(ValueError, match="cannot write a file there"):
        export(made(["vector"]), tmp_path)


def test_a_program_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    def cut_off(program, path, extra_files):
        Path(path).write_text("half")
        raise KeyboardInterrupt

    (tmp_path / "m.pt2").write_text("before")
    monkeypatch.setattr(torch.export, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        export(made(["vector"]), tmp_path / "m.pt2")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_the_command(tmp_path, capsys):
    training = ["--data", "synthetic(train=30,val=20,test=20,classes=2)", "--epochs", "1"]
    run = ["--method", "unimodal(modality=m2)", "--width", "8", "--out", str(tmp_path / "run")]
    assert main(["train", *training, *run]) == 0
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "m.pt2")]) == 0
    assert capsys.readouterr().out == f"program: {tmp_path / 'm.pt2'}\n"
    program = torch.export.load(tmp_path / "m.pt2").module()
    assert program({"m2": torch.zeros(4, 32)}).shape == (4, 2)  # and no m1
