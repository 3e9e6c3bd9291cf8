import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers

from evenly.data import Modality, Padded
from evenly.nn import ENCODERS
from evenly.nn.pretrained import (
    AST,
    BERT,
    ResNet18,
    Transformer,
    ViT,
    Wav2Vec,
    configurations,
    settings_of,
)

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32}  # fmt: skip
WAVE = {**SMALL, "conv_dim": [8, 8], "conv_kernel": [10, 4], "conv_stride": [5, 4],
        "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2}  # fmt: skip


def modality(kind, *shape):
    width = {"image": shape[0], "video": shape[1 % len(shape)], "text": 0}.get(kind, shape[-1])
    return Modality("x", kind, shape, torch.zeros(width), torch.ones(width))


def text(n=3, longest=6, tokens=20):
    values = torch.randint(1, tokens, (n, longest), dtype=torch.int32)
    return Padded(values, torch.arange(longest, longest - n, -1))


CASES = {
    "resnet18": (ResNet18, modality("image", 1, 40, 48), {}, 512),
    "resnet18 of a video": (ResNet18, modality("video", 2, 3, 32, 32), {}, 512),
    "vit": (ViT, modality("image", 3, 32, 48), {"config": {**SMALL, "patch_size": 16}}, 16),
    "vit of a video": (
        ViT, modality("video", 2, 1, 32, 32), {"config": {**SMALL, "patch_size": 16}}, 16
    ),
    "ast": (AST, modality("image", 1, 32, 50), {"config": SMALL}, 16),
    "bert": (BERT, modality("text", 6, 20), {"config": SMALL}, 16),
    "wav2vec": (Wav2Vec, modality("sequence", 800, 1), {"config": WAVE}, 16),
    "transformer": (Transformer, modality("sequence", 6, 5), {"width": 16, "layers": 2}, 16),
    "transformer of a text": (Transformer, modality("text", 6, 20), {"width": 16}, 16),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_features_and_gradients(case):
    torch.manual_seed(0)
    kind, of, settings, width = CASES[case]
    encoder = kind(of, **settings)
    assert encoder.out_features == width
    x = text() if of.kind == "text" else torch.randn(3, *of.shape)
    features = encoder(x)
    assert features.shape == (3, width)
    (features * torch.randn(3, width)).sum().backward()
    learnt = [p.grad is not None and bool(p.grad.any()) for p in encoder.parameters()]
    assert sum(learnt) / len(learnt) > 0.8  # a pooler that is not read has no part


def test_the_paper_s_encoder_has_its_size():
    count = lambda channels: sum(  # noqa: E731
        p.numel() for p in ResNet18(modality("image", channels, 224, 224)).parameters()
    )
    assert count(3) == 11_176_512
    assert count(1) == 11_176_512 - 2 * 64 * 49


def test_a_video_is_the_mean_of_its_frames():
    encoder = ResNet18(modality("video", 3, 3, 32, 32)).eval()
    x = torch.randn(2, 3, 3, 32, 32)
    frames = torch.stack([encoder(x[:, [t]]) for t in range(3)])
    torch.testing.assert_close(encoder(x), frames.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [BERT, Transformer])
def test_padding_never_counts(kind):
    torch.manual_seed(0)
    settings = {"config": SMALL} if kind is BERT else {"width": 16}
    encoder = kind(modality("text", 6, 20), **settings).eval()
    x = text()
    longer = Padded(torch.nn.functional.pad(x.values, (0, 5), value=7), x.length)
    torch.testing.assert_close(encoder(longer), encoder(x), rtol=1e-4, atol=1e-5)
    unknown = Padded(torch.where(x.values == 3, 99, x.values), x.length)
    as_one = Padded(torch.where(x.values == 3, 1, x.values), x.length)
    assert torch.equal(encoder(unknown), encoder(as_one))


def test_waveforms_of_unequal_lengths():
    """Each as by itself, though the model normalises over time."""
    torch.manual_seed(0)
    encoder = Wav2Vec(modality("sequence", 800, 1), config=WAVE).eval()
    assert encoder.model.config.feat_extract_norm == "group"
    x = Padded(torch.randn(4, 800, 1), torch.tensor([500, 800, 25, 500]))
    for row, length in enumerate(x.length.tolist()):
        x.values[row, length:] = 7.0
    steps, there = encoder.tokens(x)
    features = encoder(x)
    # two convolutions, of 10 samples every 5 and of 4 of theirs every 4
    assert there.sum(1).tolist() == [24, 39, 1, 24]
    for row, length in enumerate(x.length.tolist()):
        alone = encoder.tokens(x.values[[row], :length]).steps
        torch.testing.assert_close(steps[[row], : alone.shape[1]], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features[[row]], alone.mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stable", [False, True])
def test_waveforms_of_a_model_that_norms_by_step(stable):
    """As the large models do, whose attention alone could reach over padding."""
    torch.manual_seed(0)
    config = {**WAVE, "feat_extract_norm": "layer", "do_stable_layer_norm": stable}
    encoder = Wav2Vec(modality("sequence", 800, 1), config=config).eval()
    x = Padded(torch.randn(3, 900, 1), torch.tensor([500, 800, 31]))
    for row, length in enumerate(x.length.tolist()):
        alone = encoder(x.values[[row], :length])
        torch.testing.assert_close(encoder(x)[[row]], alone, rtol=1e-4, atol=1e-5)


def test_waveforms_in_half_precision():
    encoder = Wav2Vec(modality("sequence", 800, 1), config=WAVE).bfloat16().eval()
    x = Padded(torch.randn(2, 900, 1, dtype=torch.bfloat16), torch.tensor([500, 800]))
    assert encoder(x).dtype == torch.bfloat16


def test_what_a_wav2vec_cannot_have():
    with pytest.raises(ValueError, match="add_adapter=true makes fewer tokens"):
        Wav2Vec(modality("sequence", 800, 1), config={**WAVE, "add_adapter": True})


def test_texts_longer_than_a_bert_has_positions():
    """Before anything is trained, as a batch with one may come late."""
    config = {**SMALL, "max_position_embeddings": 8}
    assert BERT(modality("text", 8, 20), config=config).longest == 8
    with pytest.raises(ValueError, match=r"positions for 8 tokens, but a text of 'x' has 9\."):
        BERT(modality("text", 9, 20), config=config)


def test_waveforms_too_short_for_a_token():
    encoder = Wav2Vec(modality("sequence", 800, 1), config=WAVE).eval()
    x = Padded(torch.ones(3, 9, 1), torch.tensor([9, 1, 0]))
    assert encoder.tokens(x).there.sum(1).tolist() == [1, 1, 1]
    filled = torch.nn.functional.pad(torch.ones(1, 9, 1), (0, 0, 0, 16))
    torch.testing.assert_close(encoder(x)[:1], encoder(filled), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["vit", "ast", "bert", "wav2vec"])
def test_weights_from_a_folder(case, tmp_path):
    kind, of, settings, _ = CASES[case]
    torch.manual_seed(1)
    first = kind(of, **settings).eval()
    first.model.save_pretrained(tmp_path)
    again = kind(of, pretrained=str(tmp_path)).eval()
    x = text() if of.kind == "text" else torch.randn(3, *of.shape)
    torch.testing.assert_close(again(x), first(x), rtol=1e-4, atol=1e-5)
    other = "bert" if case != "bert" else "vit"
    wrong, shape, _, _ = CASES[other]
    with pytest.raises(ValueError, match="holds a "):
        wrong(shape, pretrained=str(tmp_path))


REFUSED = {
    "words": ("bert", "text(length=6)", "was read with no tokenizer, so nothing"),
    "a rate": ("wav2vec", "wave(seconds=1.0,sample_rate=22050)", "sample_rate=16000, but 'x' was"),
    "a front": ("ast", "spectrogram(front=mel)", "front=fbank, but 'x' was read with front=mel"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_prepared_otherwise_than_for_the_weights(case, tmp_path):
    """Refused with weights, but not by a new model or one from a checkpoint."""
    name, read, said = REFUSED[case]
    kind, of, settings, _ = CASES[name]
    new = kind(replace(of, read=read), **settings)
    new.model.save_pretrained(tmp_path)
    if name == "wav2vec":
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    kind(of, pretrained=str(tmp_path))
    with pytest.raises(ValueError, match=said):
        kind(replace(of, read=read), pretrained=str(tmp_path))
    kind(replace(of, read=read), pretrained=settings_of(new.model.config))


def test_more_tokens_than_the_weights_know(tmp_path):
    BERT(modality("text", 6, 20), config=SMALL).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="knows 20 tokens, but 'x' has 21"):
        BERT(modality("text", 6, 21), pretrained=str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "shape"), [(AST, ("image", 3, 32, 50)), (Wav2Vec, ("sequence", 800, 2))]
)
def test_sound_of_several_channels_is_refused(kind, shape):
    """Neither would read any but the first."""
    count = 3 if kind is AST else 2
    with pytest.raises(ValueError, match=f"sound of one channel, but 'x' has {count}: "):
        kind(modality(*shape))


def test_no_weights_there(tmp_path):
    with pytest.raises(ValueError, match=r"no weights found at .*none"):
        ViT(modality("image", 3, 32, 32), pretrained=str(tmp_path / "none"))


@pytest.mark.parametrize("lost", ["encoder.layer.1.output.dense.weight", "pooler.dense.bias"])
def test_weights_that_are_missing_are_never_random(lost, tmp_path):
    """Those of a pooler that nothing reads may be."""
    model = BERT(modality("text", 6, 20), config=SMALL).model
    kept = {key: x for key, x in model.state_dict().items() if key != lost}
    model.save_pretrained(tmp_path, state_dict=kept)
    if lost.startswith("pooler"):
        BERT(modality("text", 6, 20), pretrained=str(tmp_path))
    else:
        with pytest.raises(ValueError, match=rf"lack '{lost}', which would stay random\. Give a f"):
            BERT(modality("text", 6, 20), pretrained=str(tmp_path))


@pytest.mark.parametrize("text", ["/weights", "./weights", "../weights", "~/weights", "a/b/c"])
def test_what_can_only_be_a_path_is_not_asked_for_on_the_hub(text, monkeypatch, tmp_path):
    from transformers import AutoModel

    monkeypatch.setattr(AutoModel, "from_pretrained", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=rf"no weights found at '{text}' \(no such folder\)"):
        BERT(modality("text", 6, 20), pretrained=text)


@pytest.mark.parametrize("text", ["bert-base-uncased", "google/vit-base-patch16-224", "~/weights"])
def test_names_and_folders_are_opened(text, monkeypatch, tmp_path):
    from transformers import AutoModel

    def nothing(where, trust_remote_code, output_loading_info):
        assert trust_remote_code is False
        raise OSError(f"nothing in {where}\nand more")

    monkeypatch.setattr(AutoModel, "from_pretrained", nothing)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    place = text.replace("~", str(tmp_path))
    with pytest.raises(
        ValueError, match=rf"no weights found at '{text}' \(nothing in {place}\)\. Give"
    ):
        BERT(modality("text", 6, 20), pretrained=text)


@pytest.mark.parametrize("case", ["resnet18", "vit", "ast", "bert", "wav2vec"])
def test_a_configuration_stands_in_for_the_folder(case, tmp_path):
    """Of a model stored in half precision, which is trained in full."""
    kind, of, settings, _ = CASES[case]
    made = kind(of, **settings)
    folder = tmp_path / "weights"
    made.model.half().save_pretrained(folder)
    if case == "bert":
        of = modality("text", 6, 13)  # fewer tokens than the folder's model knows
    encoders = {"x": kind(of, pretrained=str(folder)), "y": made, "z": torch.nn.Linear(1, 1)}
    shutil.rmtree(folder)
    found = configurations(encoders)
    assert set(found) == {"x"}
    assert str(tmp_path) not in json.dumps(found)
    again = kind(of, pretrained=json.loads(json.dumps(found["x"])))
    assert configurations(torch.nn.ModuleDict({"x": again})) == found
    first = encoders["x"].eval()
    again.eval().load_state_dict(first.state_dict())
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    x = text() if of.kind == "text" else torch.randn(3, *of.shape)
    assert torch.equal(again(x), first(x))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [(ResNet18, ("vector", 4)), (AST, ("sequence", 4, 4)), (BERT, ("image", 1, 4, 4)),
     (Wav2Vec, ("text", 4, 9)), (Transformer, ("image", 1, 4, 4))],
)  # fmt: skip
def test_another_kind_of_modality_is_refused(kind, wrong):
    with pytest.raises(ValueError, match=rf"{kind.__name__} takes .*, but 'x' is {wrong[0]}"):
        kind(modality(*wrong))


def test_a_width_that_heads_do_not_divide():
    with pytest.raises(ValueError, match="width 12 is not a multiple of twice the 4 heads"):
        Transformer(modality("sequence", 5, 3), width=12)


def test_the_text_of_an_encoder_shows_its_settings(tmp_path):
    encoder = Transformer(modality("sequence", 9, 3), width=16, layers=2, heads=4)
    assert repr(encoder).splitlines()[1].strip() == "layers=2, heads=4, out_features=16"
    vit = ViT(modality("image", 3, 32, 32), config={**SMALL, "patch_size": 16})
    assert repr(vit).splitlines()[1].strip() == "pretrained='', out_features=16"
    vit.model.save_pretrained(tmp_path / "vit")
    loaded = ViT(modality("image", 3, 32, 32), pretrained=str(tmp_path / "vit"))
    first = repr(loaded).splitlines()[1].strip()
    assert first == f"pretrained='{tmp_path / 'vit'}', out_features=16"


def test_order_matters_to_a_transformer():
    encoder = Transformer(modality("sequence", 6, 5), width=16).eval()
    x = torch.randn(2, 6, 5)
    assert not torch.allclose(encoder(x), encoder(x.flip(1)), atol=1e-3)


@pytest.mark.slow
def test_by_name_in_the_lab(tmp_path):
    from evenly.lab.run.prepare import prepare
    from evenly.lab.run.run import run_cell
    from evenly.lab.run.settings import Cell, Training
    from evenly.lab.trained.load import load_run

    asked = {"top": "vit(config={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, "
             "intermediate_size: 16, patch_size: 4})", "bottom": "resnet18"}  # fmt: skip
    training = Training("digits", epochs=1, batch_size=512, encoders=asked, diagnose_every=0)
    run_cell(Cell(training, "joint", 0), tmp_path)
    kinds = {name: type(e).__name__ for name, e in load_run(tmp_path).model.encoders.items()}
    assert kinds == {"top": "ViT", "bottom": "ResNet18"}
    with pytest.raises(ValueError, match=r"unknown encoder 'vitt'\. Did you mean vit\?"):
        prepare([Cell(Training("digits", encoders={"top": "vitt"}), "joint", 0)])
    assert set(ENCODERS) >= {"resnet18", "ast", "bert", "wav2vec"}


def test_weights_for_another_length_are_fitted(tmp_path):
    """Positions on a slope of time stay on it; the rest of the weights is as it was."""
    from transformers import ASTConfig, ASTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    long = ASTModel(ASTConfig(**sizes, intermediate_size=16, num_mel_bins=32, max_length=206))
    with torch.no_grad():
        slope = torch.arange(20.0).expand(2, 20).flatten()  # two rows of patches, twenty columns
        long.embeddings.position_embeddings[0, 2:] = slope[:, None]
        long.embeddings.position_embeddings[0, :2] = 7
    long.save_pretrained(tmp_path / "weights")
    encoder = AST(modality("image", 1, 32, 106), str(tmp_path / "weights"))
    assert encoder(torch.randn(2, 1, 32, 106)).shape == (2, 16)
    position = encoder.model.embeddings.position_embeddings[0, :, 0]
    assert position[:2].tolist() == [7, 7]
    rows = position[2:].reshape(2, 10)
    torch.testing.assert_close(rows[0], rows[1])
    torch.testing.assert_close(rows[0], torch.arange(10) * 2 + 0.5)
    before = dict(long.named_parameters())
    for name, value in encoder.model.named_parameters():
        if "position" not in name:
            assert torch.equal(value, before[name])
    again = AST(modality("image", 1, 32, 106), configurations({"x": encoder})["x"])
    again.load_state_dict(encoder.state_dict())
    with pytest.raises(ValueError, match="is smaller than a patch"):
        AST(modality("image", 1, 32, 10), str(tmp_path / "weights"))


@pytest.mark.parametrize(
    ("setting", "guess"),
    [
        ("trust_remote_code", ""),
        ("attn_implementation", ""),
        ("allow_all_kernels", ""),
        ("auto_map", ""),
        ("quantization_config", ""),
        ("model_type", ""),
        ("hiden_size", "Did you mean hidden_size"),
    ],
)
@pytest.mark.parametrize("pretrained", ["", "somebody/weights", {"model_type": "bert"}])
def test_a_configuration_has_its_own_settings_alone(setting, guess, pretrained, monkeypatch):
    """Transformers takes others, some of which run code of the hub, or drops them in silence."""
    monkeypatch.setattr("transformers.AutoModel.from_pretrained", None)
    said = f"unknown setting '{setting}' of bert's configuration. {guess}"
    with pytest.raises(ValueError, match=said):
        BERT(modality("text", 6, 20), pretrained=pretrained, config={setting: "true"})


def test_a_configuration_of_weights_is_read_for_what_it_is():
    asked = {"model_type": "wav2vec2", "auto_map": {"AutoModel": "a--b.C"}, "hidden_size": 24}
    found = BERT(modality("text", 6, 20), pretrained={**asked, "num_attention_heads": 2})
    assert type(found.model).__name__ == "BertModel"
    assert found.out_features == 24
    assert not hasattr(found.model.config, "auto_map")
