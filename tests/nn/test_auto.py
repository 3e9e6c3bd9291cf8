"""Encoders of each kind from a folder; values are those of the Transformers model itself."""

import json

import pytest
import torch
import transformers
from test_pretrained import SMALL, WAVE
from torch.nn.functional import pad

from evenly.data import Modality, Padded
from evenly.nn import ENCODERS, LateFusion
from evenly.nn.auto import Auto, _checkpoint
from evenly.nn.heads import TOKEN_FUSIONS
from evenly.nn.pretrained import configurations

PICTURE = {**SMALL, "image_size": 32, "patch_size": 16}
WORDS = {**SMALL, "vocab_size": 40, "max_position_embeddings": 12, "pad_token_id": 1,
         "bos_token_id": 38, "eos_token_id": 39}  # fmt: skip
WHISPER = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
           "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
           "num_mel_bins": 80, "max_source_positions": 50, "vocab_size": 20, "pad_token_id": 0,
           "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}  # fmt: skip
TOWERS = {"text_config": WORDS, "vision_config": PICTURE}
CONFIGS = {
    "vit": transformers.ViTConfig(**PICTURE),
    "dinov2": transformers.Dinov2Config(**{**PICTURE, "image_size": 64}),
    "clip": transformers.CLIPConfig(**TOWERS),
    "siglip": transformers.SiglipConfig(**TOWERS),
    "videomae": transformers.VideoMAEConfig(**PICTURE, num_frames=4),
    "ast": transformers.ASTConfig(**SMALL, num_mel_bins=32, max_length=50),
    "hubert": transformers.HubertConfig(**WAVE),
    "wav2vec2": transformers.Wav2Vec2Config(**WAVE),
    "wav2vec2 of the large kind": transformers.Wav2Vec2Config(
        **WAVE, feat_extract_norm="layer", do_stable_layer_norm=True
    ),
    "whisper": transformers.WhisperConfig(**WHISPER),
    "bart": transformers.BartConfig(
        **{k: v for k, v in WHISPER.items() if "mel" not in k and "source" not in k},
        max_position_embeddings=12,
    ),
    "convbert": transformers.ConvBertConfig(**{**WORDS, "pad_token_id": 0}, embedding_size=16),
    "bigbird": transformers.BigBirdConfig(
        **{**WORDS, "max_position_embeddings": 64}, block_size=4, num_random_blocks=1
    ),
    "fnet": transformers.FNetConfig(hidden_size=16, num_hidden_layers=2, vocab_size=40),
    "data2vec": transformers.Data2VecAudioConfig(**WAVE),
    "conformer": transformers.Wav2Vec2ConformerConfig(**WAVE, conv_depthwise_kernel_size=7),
    "deberta": transformers.DebertaV2Config(
        **{**WORDS, "pad_token_id": 0},
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        norm_rel_ebd="layer_norm",
    ),
    "bert": transformers.BertConfig(**{**WORDS, "pad_token_id": 0}),
    "roberta": transformers.RobertaConfig(**{**WORDS, "max_position_embeddings": 14}),
    "modernbert": transformers.ModernBertConfig(
        **WORDS, cls_token_id=2, sep_token_id=3, global_attn_every_n_layers=1
    ),
    "t5": transformers.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=40
    ),
    "resnet": transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic"
    ),
    "convnext": transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
}
CLIP_PICTURES = transformers.CLIPImageProcessor(
    size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
)


def of(kind, *shape, mean=100.0, std=50.0, read=""):
    width = {"image": shape[0], "video": shape[1 % len(shape)], "text": 0}.get(kind, shape[-1])
    return Modality("x", kind, shape, torch.full((width,), mean), torch.full((width,), std), read)


@pytest.fixture
def folder(tmp_path):
    """Makes the folder of a tiny model with random weights."""

    def made(name, *processors, dtype=torch.float32):
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(CONFIGS[name])
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(0, 0.2)
        model.to(dtype).save_pretrained(tmp_path / name)
        for processor in processors:
            processor.save_pretrained(tmp_path / name)
        return str(tmp_path / name), model.float().eval()

    return made


def pictures(*shape):
    torch.manual_seed(1)
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def texts():
    torch.manual_seed(1)
    values = torch.randint(3, 38, (3, 8), dtype=torch.int32)
    values[[0, 1, 2], [7, 4, 2]] = 39  # where each ends
    length = torch.tensor([8, 5, 3])
    return Padded(values * (torch.arange(8) < length[:, None]), length)


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def mean(steps, length):
    there = (torch.arange(steps.shape[1]) < length[:, None])[..., None]
    return (steps * there).sum(1) / length[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["vit", "dinov2", "clip", "siglip", "convnext"])
def test_pictures(name, dtype, folder):
    """As the processor and the model themselves make of them, whatever the weights lie in."""
    place, model = folder(name, CLIP_PICTURES, dtype=dtype)
    x = pictures(3, 3, 32, 32)
    encoder = Auto(of("image", 3, 32, 32), place).eval()
    values = CLIP_PICTURES(list(x), return_tensors="pt")["pixel_values"]
    found = getattr(model, "vision_model", model)(pixel_values=values)
    steps = found.last_hidden_state
    if name in ("clip", "siglip"):
        assert encoder.pool == "pooler"
        same(encoder(x), found.pooler_output)
    else:
        same(encoder(x), steps.flatten(2).mean(2) if name == "convnext" else steps.mean(1))
    assert encoder.out_features == 16
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    if name != "convnext":
        same(Auto(of("image", 3, 32, 32), place, pool="cls").eval()(x), steps[:, 0])
    if name == "clip":
        with torch.autocast("cpu", torch.bfloat16):
            half, own = encoder(x), model.vision_model(pixel_values=values).pooler_output
        torch.testing.assert_close(half, own, rtol=0.05, atol=0.05)


def test_its_text_shows_the_settings(folder):
    place, _ = folder("vit")
    changes = {"layer_norm_eps": 1e-6}
    encoder = Auto(of("image", 3, 32, 32), place, config=changes, freeze=1, width=8)
    first = repr(encoder).splitlines()[1].strip()
    assert first == (
        f"pretrained={place!r}, pool='mean', config={{'layer_norm_eps': 1e-06}}, freeze=1, "
        "width=8, lora=0, checkpointing=False, out_features=8"
    )
    again = Auto(of("image", 3, 32, 32), encoder.configuration(), pool="cls", checkpointing=True)
    first = repr(again).splitlines()[1].strip()
    assert first == (
        "pretrained='vit', pool='cls', freeze=False, width=0, lora=0, checkpointing=True, "
        "out_features=16"
    )


def test_pictures_from_0_to_1_and_frames(folder):
    place, _ = folder("clip", CLIP_PICTURES)
    x = pictures(2, 3, 3, 32, 32)
    encoder = Auto(of("video", 3, 3, 32, 32), place).eval()
    frames = torch.stack([encoder(x[:, [t]]) for t in range(3)])
    same(encoder(x), frames.mean(0))
    assert encoder.tokens(x).steps.shape == (2, 3 * 5, 16)
    unit = Auto(of("video", 3, 3, 32, 32, mean=0.4, std=0.2), place).eval()
    same(unit(x / 255), encoder(x))
    with pytest.raises(ValueError, match=r"bytes, or from 0 to 1, but those of 'x' have means fro"):
        Auto(of("video", 3, 3, 32, 32, mean=0.0, std=1.2), place)


def test_clips(folder):
    processor = transformers.VideoMAEImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    place, model = folder("videomae", processor)
    x = pictures(2, 4, 3, 32, 32)
    values = torch.stack(
        [processor(list(clip), return_tensors="pt")["pixel_values"][0] for clip in x]
    )
    encoder = Auto(of("video", 4, 3, 32, 32), place).eval()
    same(encoder(x), model(values).last_hidden_state.mean(1))
    with pytest.raises(ValueError, match=r"4 frames, but 'x' has 2.*video\(frames=4\)"):
        Auto(of("video", 2, 3, 32, 32), place)
    with pytest.raises(ValueError, match="but 'x' is image"):
        Auto(of("image", 3, 32, 32), place)
    read = "image(size=[32,32],several={})"
    Auto(of("video", 4, 3, 32, 32, read=read.format("false")), place)
    with pytest.raises(ValueError, match=r"of 4 frames, but 'x' has as many pictures as lie in a"):
        Auto(of("video", 4, 3, 32, 32, read=read.format("true")), place)


def test_several_pictures(folder):
    """Unequal numbers of them, whatever pads them; and features in their place have one blank."""
    place, _ = folder("clip", CLIP_PICTURES)
    x, length = pictures(3, 3, 3, 32, 32), torch.tensor([1, 3, 0])
    for pool, behind in (("pooler", 0), ("mean", 8)):
        encoder = Auto(of("video", 3, 3, 32, 32), place, pool=pool, width=behind).eval()
        found = encoder.pooled(Padded(x, length))
        own = torch.stack([encoder.pooled(x[:, [t]]) for t in range(3)])
        same(found[:2], torch.stack([own[0, 0], own[:, 1].mean(0)]))
        assert not found[2].any()
    tokens = encoder.tokens(Padded(x, length))
    assert tokens.there.sum(1).tolist() == [5, 15, 0]
    same(tokens.steps[0, :5], encoder.tokens(x[:1, :1]).steps[0])
    blank = encoder.pooled(encoder.standardise.mean.expand(1, 1, 3, 32, 32))
    for first in (Padded(x[:1], length[:1]), Padded(x[2:, :0], length[2:])):
        encoder.blank = None
        encoder.take_features(first)
        same(encoder.blank, blank)


@pytest.mark.parametrize("name", ["clip", "bert", "roberta", "modernbert", "t5"])
def test_texts(name, folder):
    place, model = folder(name, dtype=torch.bfloat16)
    x = texts()
    tower = model.text_model if name == "clip" else getattr(model, "encoder", model)
    tower = model if name in ("bert", "roberta") else tower
    pads = CONFIGS[name].pad_token_id if name != "clip" else 1
    there = torch.arange(8) < x.length[:, None]
    ids = x.values.long().masked_fill(~there, pads)
    found = tower(input_ids=ids, attention_mask=there.long())
    encoder = Auto(of("text", 8, 40), place, pool="mean").eval()
    same(encoder(x), mean(found.last_hidden_state, x.length))
    last = Auto(of("text", 8, 40), place, pool="last").eval()
    same(last(x), found.last_hidden_state[torch.arange(3), x.length - 1])
    longer = Padded(pad(x.values, (0, 3), value=7), x.length)
    same(encoder(longer), encoder(x))
    if name == "clip":
        same(Auto(of("text", 8, 40), place).eval()(x), found.pooler_output)
    empty = Padded(torch.zeros(2, 0, dtype=torch.int32), torch.tensor([0, 0]))
    assert encoder(empty).isfinite().all()


def test_an_encoder_saved_alone(folder):
    torch.manual_seed(0)
    place, _ = folder("t5")
    model = transformers.T5EncoderModel(transformers.T5Config(**CONFIGS["t5"].to_dict())).eval()
    model.save_pretrained(place)
    encoder = Auto(of("text", 8, 40), place).eval()
    x = texts()
    ids, there = x.values.long(), (torch.arange(8) < x.length[:, None]).long()
    same(encoder(x), mean(model(ids, there).last_hidden_state, x.length))
    assert type(Auto(of("text", 8, 40), encoder.configuration()).model) is type(encoder.model)


def test_texts_of_siglip_are_filled_up(folder):
    """It was trained so, without a mask, and pools the last of them."""
    place, model = folder("siglip")
    x = texts()
    there = torch.arange(8) < x.length[:, None]
    ids = pad(x.values.long().masked_fill(~there, 1), (0, 4), value=1)
    found = model.text_model(input_ids=ids)
    same(Auto(of("text", 8, 40), place).eval()(x), found.pooler_output)
    pooled = Auto(of("text", 8, 40), place, pool="mean").eval()
    same(pooled(x), mean(found.last_hidden_state, x.length))


def test_texts_are_filled_up_with_the_token_of_the_tokenizer(folder, tmp_path):
    """As SigLIP 2's, whose configuration says the end of the text, 1, and whose tokenizer 0."""
    place, model = folder("siglip")
    words = {word: number for number, word in enumerate(["<pad>", "<eos>", *map(str, range(38))])}
    x = texts()
    there = torch.arange(8) < x.length[:, None]
    ids = pad(x.values.long().masked_fill(~there, 0), (0, 4), value=0)
    expected = model.text_model(input_ids=ids).pooler_output
    tokenizer(tmp_path / "apart", words, pad_token="<pad>")
    read = Auto(of("text", 8, 40, read=f"text(tokenizer={tmp_path / 'apart'})"), place).eval()
    same(read(x), expected)
    tokenizer(place, words, pad_token="<pad>")
    beside = Auto(of("text", 8, 40), place).eval()
    same(beside(x), expected)
    again = Auto(of("text", 8, 40), json.loads(json.dumps(beside.configuration()))).eval()
    again.load_state_dict(beside.state_dict())
    same(again(x), expected)


@pytest.mark.parametrize("name", ["hubert", "wav2vec2"])
@pytest.mark.parametrize("normalise", [True, False])
def test_waveforms(name, normalise, folder):
    processor = transformers.Wav2Vec2FeatureExtractor(
        do_normalize=normalise, return_attention_mask=False
    )
    place, model = folder(name, processor, dtype=torch.bfloat16)
    torch.manual_seed(1)
    x = torch.randn(3, 800, 1)
    encoder = Auto(of("sequence", 800, 1), place).eval()

    def alone(wave):
        values = processor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
        return model(values).last_hidden_state.mean(1)

    same(encoder(x), torch.cat([alone(wave[:, 0]) for wave in x]))
    lengths = torch.tensor([800, 500, 300])
    same(
        encoder(Padded(x, lengths)),
        torch.cat([alone(w[:n, 0]) for w, n in zip(x, lengths.tolist(), strict=True)]),
    )


def test_an_adapter_behind_waveforms_is_refused(folder):
    """Sounds of unequal lengths would be encoded without it, and of equal lengths with it."""
    place, _ = folder("wav2vec2")
    config = transformers.Wav2Vec2Config(**WAVE, add_adapter=True)
    transformers.Wav2Vec2Model(config).save_pretrained(place)
    with pytest.raises(ValueError, match=r"add_adapter=true .*\. Give config={add_adapter: false}"):
        Auto(of("sequence", 800, 1), place)
    Auto(of("sequence", 800, 1), place, config={"add_adapter": False})


def test_texts_that_padding_would_change_are_refused(folder):
    for name in ("convbert", "fnet"):
        with pytest.raises(
            ValueError, match=rf"{name}' \(\w+\) mixes padding into its tokens, .*text"
        ):
            Auto(of("text", 8, 40), folder(name)[0])


def test_long_texts_under_block_sparse_attention_are_refused(folder):
    """Of (5 + 2) * 4 tokens and fewer, each batch gets full attention."""
    place, model = folder("bigbird")
    with pytest.raises(ValueError, match=r"than 28 tokens, .* up to 29; .*original_full}, .*=28"):
        Auto(of("text", 29, 40), place)
    x = torch.randint(3, 38, (1, 40))
    with torch.no_grad():
        blocks = [model(pad(x, (0, n)), pad(torch.ones_like(x), (0, n)))[0] for n in (0, 20)]
        assert not torch.allclose(blocks[0], blocks[1][:, :40], atol=1e-3)
        encoder = Auto(of("text", 40, 40), place, config={"attention_type": "original_full"}).eval()
        full = [encoder(Padded(pad(x, (0, n)), torch.tensor([40]))) for n in (0, 20)]
        same(*full)
    Auto(of("text", 28, 40), place)


@pytest.mark.parametrize("name", ["data2vec", "conformer"])
def test_sounds_that_padding_would_change_have_one_length(name, folder):
    encoder = Auto(of("sequence", 800, 1), folder(name)[0])
    x = torch.randn(2, 800, 1)
    assert encoder(x).shape == (2, 16)
    with pytest.raises(
        ValueError, match=r"takes sounds of one length only\. Read them with wave\(s"
    ):
        encoder(Padded(x, torch.tensor([800, 500])))


def test_waveforms_for_whisper(folder):
    processor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    place, model = folder("whisper", processor)
    torch.manual_seed(1)
    x, lengths = torch.randn(2, 12_000, 1), torch.tensor([12_000, 6_400])
    raw = [wave[:n, 0].numpy() for wave, n in zip(x, lengths.tolist(), strict=True)]
    bands = processor(raw, sampling_rate=16_000, return_tensors="pt").input_features
    steps = model.encoder(bands).last_hidden_state
    encoder = Auto(of("sequence", 12_000, 1), place).eval()
    same(encoder(Padded(x, lengths)), mean(steps, torch.tensor([38, 20])))
    assert encoder.longest == 16_000
    with pytest.raises(ValueError, match=r"hears 16000 samples at most.*wave\(seconds=1\)"):
        Auto(of("sequence", 16_001, 1), place)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.encoder(bands).last_hidden_state.float()
        found = encoder(Padded(x, lengths)).float()
    torch.testing.assert_close(found, mean(half, torch.tensor([38, 20])), rtol=0.02, atol=0.02)


def test_spectrograms(folder):
    processor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=50)
    place, model = folder("ast", processor)
    torch.manual_seed(1)
    x = torch.randn(2, 1, 32, 50).half()
    encoder = Auto(of("image", 1, 32, 50), place).eval()
    values = processor.normalize(x.float()[:, 0].transpose(1, 2))
    same(encoder(x), model(values).last_hidden_state.mean(1))
    assert Auto(of("image", 1, 32, 90), place)(torch.randn(2, 1, 32, 90)).shape == (2, 16)
    with pytest.raises(ValueError, match="32 bands, but 'x' has 64"):
        Auto(of("image", 1, 64, 50), place)


IN_HALF = {"bert": of("text", 8, 40), "modernbert": of("text", 8, 40), "siglip": of("text", 8, 40),
           "hubert": of("sequence", 800, 1), "videomae": of("video", 4, 3, 32, 32),
           "ast": of("image", 1, 32, 50)}  # fmt: skip


@pytest.mark.parametrize("name", IN_HALF)
def test_in_bf16_outputs_and_gradients_are_nearly_those_in_32_bits(name, folder):
    modality = IN_HALF[name]
    torch.manual_seed(1)
    x = texts() if modality.kind == "text" else 100 + 50 * torch.randn(3, *modality.shape)
    encoder = Auto(modality, folder(name)[0]).eval()

    def passed():
        encoder.zero_grad()
        found = encoder(x)
        found.float().square().sum().backward()
        grads = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
        return found.detach().float(), torch.cat(grads)

    wanted = passed()
    with torch.autocast("cpu", torch.bfloat16):
        found = passed()
    for half, single in zip(found, wanted, strict=True):
        assert half.isfinite().all()
        assert (half - single).norm() < 0.05 * single.norm()


def test_without_a_processor_the_training_split_says_how_inputs_lie(folder):
    place, model = folder("vit")
    x = pictures(2, 3, 32, 32)
    encoder = Auto(of("image", 3, 32, 32), place).eval()
    same(encoder(x), model((x.float() - 100) / 50).last_hidden_state.mean(1))


CASES = {
    "clip": (of("image", 3, 32, 32), lambda: pictures(2, 3, 32, 32)),
    "siglip": (of("text", 8, 40), texts),
    "whisper": (of("sequence", 4_000, 1), lambda: torch.ones(2, 4_000, 1)),
    "hubert": (of("sequence", 800, 1), lambda: torch.ones(2, 800, 1)),
    "ast": (of("image", 1, 32, 80), lambda: torch.ones(2, 1, 32, 80)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_configuration_stands_in_for_the_folder(name, folder):
    shape, x = CASES[name]
    processors = [CLIP_PICTURES] if name == "clip" else []
    encoder = Auto(shape, folder(name, *processors)[0]).eval()
    found = json.loads(json.dumps(configurations({"x": encoder})["x"]))
    blank = Modality("x", shape.kind, shape.shape, torch.zeros_like(shape.mean),
                     torch.ones_like(shape.std))  # fmt: skip
    again = Auto(blank, found).eval()
    assert configurations({"x": again})["x"] == found
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(x()), encoder(x()))
    assert again.longest == encoder.longest


def test_what_a_checkpoint_says_is_read_for_settings_alone(folder):
    place, _ = folder("clip")
    found = Auto(of("image", 3, 32, 32), place).configuration()
    found["model"] |= {"auto_map": {"AutoModel": "a--b.C"}}
    found["model"]["vision_config"] |= {"auto_map": {}, "attn_implementation": "a/b"}
    again = Auto(of("image", 3, 32, 32), found)
    assert not hasattr(again.model.config, "auto_map")
    assert again.model.config._attn_implementation != "a/b"


def without(place, model, *lost, prefix=""):
    """Writes the weights again, without these or under other names."""
    kept = {prefix + k: x for k, x in model.state_dict().items() if not k.startswith(lost)}
    model.save_pretrained(place, state_dict=kept)


def test_weights_that_are_missing_are_never_random(folder):
    place, model = folder("bert")
    shape = of("text", 8, 40)
    without(place, model, "pooler.")
    Auto(shape, place, freeze=True)
    with pytest.raises(
        ValueError, match=r"lack 'pooler\.dense\.bias' and 1 more, .*\. Give pool=mean, cls"
    ):
        Auto(shape, place, pool="pooler")
    without(place, model, prefix="net.")
    with pytest.raises(ValueError, match=r"and \d+ more, which would stay random\. Give a folder"):
        Auto(shape, place, freeze=True)
    tower = "vision_model.encoder.layers.1."
    place, model = folder("clip")
    without(place, model, tower)
    Auto(of("text", 8, 40), place)  # whose tower is complete
    with pytest.raises(ValueError, match=r"lack 'vision_model\.encoder\.layers\.1\.[\w.]+' and"):
        Auto(of("image", 3, 32, 32), place)


def test_changes_to_the_configuration(folder):
    place, _ = folder("clip")
    encoder = Auto(of("image", 3, 32, 32), place, config={"attention_dropout": 0.3})
    assert encoder.model.config.attention_dropout == 0.3
    with pytest.raises(ValueError, match="unknown setting 'image_sise' of clip_vision_model's"):
        Auto(of("image", 3, 32, 32), place, config={"image_sise": 3})
    with pytest.raises(ValueError, match="unknown setting 'trust_remote_code'"):
        Auto(of("image", 3, 32, 32), place, config={"trust_remote_code": True})
    with pytest.raises(ValueError, match="no weights found at"):
        Auto(of("image", 3, 48, 48), place, config={"image_size": 48})


REFUSED = {
    "no folder": ("clip", of("text", 8, 40), {"pretrained": "./none"}, "no weights found at"),
    "a vector": ("clip", of("vector", 4), {}, "takes .*, but 'x' is vector"),
    "sound for CLIP": ("clip", of("sequence", 800, 1), {}, "but 'x' is sequence"),
    "texts for pictures": ("vit", of("text", 8, 40), {}, r"takes pictures: .* 'x' is text"),
    "two channels": ("hubert", of("sequence", 800, 2), {}, r"but 'x' is sequence \(800, 2\)"),
    "a size": ("clip", of("image", 3, 48, 48), {},
               r"32 x 32, but 'x' has 48 x 48\. Prepare it with image\(size=\[32,32\]\)"),
    "channels": ("vit", of("image", 1, 32, 32), {}, "3 channels, but 'x' has 1"),
    "a rate": ("hubert", of("sequence", 800, 1, read="wave(sample_rate=22050,seconds=1.0)"), {},
               r"sample_rate=16000, but 'x' was read with sample_rate=22050\. Prepare it with w"),
    "a front": ("ast", of("image", 1, 32, 50, read="spectrogram(front=stft)"), {},
                "front=fbank, but 'x' was read with front=stft"),
    "tokens": ("bert", of("text", 8, 41), {}, "knows 40 tokens, but 'x' has 41"),
    "a length": ("bert", of("text", 13, 40), {}, r"positions for 12 tokens.*length=12\)"),
    "positions of RoBERTa": ("roberta", of("text", 13, 40), {}, "positions for 12 tokens"),
    "words": ("bert", of("text", 8, 40, read="text(length=8)"), {},
              r"was read with no tokenizer, .* Put the files of its tokenizer there"),
    "a pool": ("vit", of("image", 3, 32, 32), {"pool": "max"}, "unknown pooling 'max' of auto"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case, folder):
    name, shape, settings, said = REFUSED[case]
    processors = {
        "hubert": [transformers.Wav2Vec2FeatureExtractor()],
        "ast": [transformers.ASTFeatureExtractor(num_mel_bins=32)],
    }
    place, _ = folder(name, *processors.get(name, ()))
    with pytest.raises(ValueError, match=said):
        Auto(shape, **{"pretrained": place, **settings})


def tokenizer(place, words, **settings):
    """Writes a tokenizer that numbers words in this order."""
    from tokenizers import Tokenizer, models

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=[*words][-1]))
    kind = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **settings)
    kind.save_pretrained(place)


def test_another_tokenizer_is_refused(folder, tmp_path):
    place, _ = folder("bert")
    tokenizer(tmp_path / "same", "abc")
    alone = of("text", 8, 3, read=f"text(tokenizer={tmp_path / 'same'})")
    Auto(alone, place)  # which has no tokenizer
    tokenizer(place, "abc")
    tokenizer(tmp_path / "other", "acb")
    for used in (place, str(tmp_path / "same")):
        Auto(of("text", 8, 3, read=f"text(tokenizer={used})"), place)
    with pytest.raises(ValueError, match="other', which numbers tokens otherwise"):
        Auto(of("text", 8, 3, read=f"text(tokenizer={tmp_path / 'other'})"), place)


def test_a_model_that_pools_nothing(folder):
    encoder = Auto(of("sequence", 800, 1), folder("hubert")[0], pool="pooler")
    with pytest.raises(ValueError, match="HubertModel has no pooling of its own"):
        encoder(torch.ones(2, 800, 1))


@pytest.mark.parametrize("head", TOKEN_FUSIONS)
def test_heads_that_take_the_first_token_refuse_another_pool(head, folder):
    place, _ = folder("clip")

    def fused(**settings):
        return LateFusion({"x": Auto(of("image", 3, 32, 32), place, **settings)}, 2, head)

    for pool in ("mean", "last", "pooler"):
        with pytest.raises(ValueError, match=f"pool={pool} of encoder 'x' would have no effect. L"):
            fused(pool=pool)
    for settings in ({}, {"pool": "cls"}):
        assert fused(**settings)({"x": pictures(2, 3, 32, 32)}).logits.shape == (2, 2)


def test_every_parameter_learns(folder):
    assert ENCODERS["auto"] is Auto
    encoder = Auto(of("image", 3, 32, 32), folder("clip")[0])
    assert encoder.model.training
    encoder(pictures(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


LAYERS = {"clip": of("image", 3, 32, 32), "bert": of("text", 8, 40),
          "hubert": of("sequence", 800, 1), "whisper": of("sequence", 4_000, 1)}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_frozen_whole_or_by_layers(name, folder):
    place, _ = folder(name)
    whole = Auto(LAYERS[name], place, freeze=True, width=5)
    trained = {key for key, p in whole.named_parameters() if p.requires_grad}
    assert trained == {key for key, _ in whole.named_parameters() if key.startswith("behind.")}
    assert whole.out_features == 5
    assert whole.training
    assert [key for key, part in whole.model.named_modules() if part.training] == []
    some = Auto(LAYERS[name], place, freeze=1)
    still = [key for key, p in some.named_parameters() if not p.requires_grad]
    assert any(".layers.0." in key or ".layer.0." in key for key in still)
    assert not any(".layers.1." in key or ".layer.1." in key for key in still)
    assert any("embed" in key or "conv" in key for key in still)
    layers = [x for x in some.model.modules() if isinstance(x, torch.nn.ModuleList)][-1]
    assert [layer.training for layer in layers] == [False, True]
    with pytest.raises(ValueError, match="has 2 layers, and freeze=3 was asked for"):
        Auto(LAYERS[name], place, freeze=3)


STILL = {
    "clip": LAYERS["clip"], "bert": LAYERS["bert"], "hubert": LAYERS["hubert"],
    "wav2vec2 of the large kind": of("sequence", 800, 1), "whisper": LAYERS["whisper"],
    "bart": of("text", 8, 20), "deberta": of("text", 8, 40),
}  # fmt: skip


@pytest.mark.parametrize("name", STILL)
def test_frozen_layers_give_the_same_in_training(name, folder):
    """Though dropout is everywhere, and a step moves all that is trained."""
    place, _ = folder(name)
    dropout = {"clip": "attention_dropout", "whisper": "dropout", "bart": "dropout"}
    config = {dropout.get(name, "hidden_dropout"): 0.5}
    if name in ("bert", "deberta"):
        config = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    elif LAYERS.get(name, STILL[name]).kind == "sequence" and name != "whisper":
        config |= {"feat_proj_dropout": 0.5}
    encoder = Auto(STILL[name], place, freeze=1, config=config)
    layers = [x for x in encoder.modules() if isinstance(x, torch.nn.ModuleList)][-1]
    seen = []
    for layer in layers:
        layer.register_forward_hook(lambda _, given, found: seen.append(found))
    torch.manual_seed(1)
    x = {
        "clip": lambda: pictures(2, 3, 32, 32),
        "bart": texts,
        "bert": texts,
        "deberta": texts,
    }.get(name, lambda: torch.randn(2, STILL[name].shape[0], 1))()
    trained = [p for p in encoder.parameters() if p.requires_grad]
    encoder(x).square().sum().backward()
    torch.optim.SGD(trained, 0.1).step()
    encoder(x)
    first, later, again, changed = (x[0] if isinstance(x, tuple) else x for x in seen)
    assert torch.equal(first, again)
    assert not torch.equal(later, changed)


AFTER = {"wav2vec2 of the large kind": "encoder.layer_norm.", "whisper": "layer_norm.",
         "clip": "post_layernorm."}  # fmt: skip


@pytest.mark.parametrize("name", AFTER)
def test_what_comes_after_all_layers_is_trained(name, folder):
    encoder = Auto(STILL[name], folder(name)[0], freeze=2)
    found = dict(encoder.model.named_parameters())
    assert {key for key in found if found[key].requires_grad and "masked" not in key} == {
        key for key in found if AFTER[name] in key and "layers." not in key
    }


def test_what_a_model_itself_keeps_fixed_stays_fixed(folder):
    """The sinusoids that are Whisper's positions."""
    encoder = Auto(LAYERS["whisper"], folder("whisper")[0])
    fixed = [key for key, p in encoder.model.named_parameters() if not p.requires_grad]
    assert fixed == ["embed_positions.weight"]


def test_what_is_frozen_has_no_dropout_and_stays(folder):
    place, _ = folder("bert")
    encoder = Auto(of("text", 8, 40), place, freeze=True, width=4)
    assert encoder.model.config.hidden_dropout_prob > 0
    assert torch.equal(encoder.pooled(texts()), encoder.pooled(texts()))
    encoder(texts()).sum().backward()
    assert all((p.grad is None) == key.startswith("model.") for key, p in
               encoder.named_parameters())  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_adapters_alone_are_trained(name, folder):
    place, _ = folder(name)
    torch.manual_seed(0)
    encoder = Auto(LAYERS[name], place, lora=2, width=4)
    trained = {key for key, p in encoder.named_parameters() if p.requires_grad}
    adapters = {key for key in trained if "lora_" in key}
    linear = [x for x in Auto(LAYERS[name], place).modules() if isinstance(x, torch.nn.Linear)]
    assert len(adapters) == 2 * len(linear)  # A and B of each
    behind = {f"behind.{key}" for key, _ in encoder.behind.named_parameters()}
    assert trained == adapters | behind
    x = {"clip": lambda: pictures(2, 3, 32, 32), "bert": texts}.get(
        name, lambda: torch.randn(2, LAYERS[name].shape[0], 1)
    )()
    plain = Auto(LAYERS[name], place).eval()
    same(encoder.eval().pooled(x), plain(x))  # B is zero at first
    again = Auto(LAYERS[name], encoder.configuration(), lora=2, width=4).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(x), encoder(x))


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_relearning_pulls_back_what_adapters_compute(weight, folder):
    """B A goes to (1 - w) B A; each by itself would go to (1 - w) B ((1 - w) A + w A_0)."""
    from evenly.reinit import initial_of, soft_reinit_

    place, _ = folder("clip")
    torch.manual_seed(0)
    encoder = Auto(of("image", 3, 32, 32), place, lora=2)
    start = initial_of(encoder)
    with torch.no_grad():
        for p in encoder.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))

    def products():
        return {
            key: layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            for key, layer in encoder.named_modules()
            if hasattr(layer, "lora_A")
        }

    before, base = products(), {k: p.clone() for k, p in encoder.named_parameters()}
    soft_reinit_(encoder, start, weight)
    for key, product in products().items():
        torch.testing.assert_close(product, (1 - weight) * before[key], rtol=1e-4, atol=1e-5)
    for key, p in encoder.named_parameters():
        assert "lora_" in key or torch.equal(p, base[key])


def test_what_takes_no_adapters(folder, monkeypatch):
    place, _ = folder("clip")
    with pytest.raises(ValueError, match="Leave freeze out"):
        Auto(of("image", 3, 32, 32), place, lora=2, freeze=True)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ValueError, match=r"needs PEFT. Install it with pip install '.\[adapt"):
        Auto(of("image", 3, 32, 32), place, lora=2)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("lora", [0, 2])
def test_checkpointing_changes_no_gradient(name, lora, folder):
    place, _ = folder(name)
    x = {"clip": lambda: pictures(2, 3, 32, 32), "bert": texts}.get(
        name, lambda: torch.randn(2, LAYERS[name].shape[0], 1)
    )()
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = Auto(LAYERS[name], place, lora=lora, checkpointing=checkpointing)
        passes = []
        layer = [m for m in encoder.modules() if isinstance(m, torch.nn.ModuleList)][-1][0]
        part = next(m for m in layer.modules() if isinstance(m, torch.nn.Linear))
        part.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        torch.manual_seed(1)
        encoder(x).square().sum().backward()
        assert len(passes) == 1 + checkpointing
        found.append({k: p.grad for k, p in encoder.named_parameters() if p.grad is not None})
    plain, again = found
    assert plain.keys() == again.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, rtol=1e-3, atol=1e-4)


def test_checkpointing_behind_frozen_layers(folder, monkeypatch):
    place, _ = folder("bert")
    encoder = Auto(LAYERS["bert"], place, freeze=1, checkpointing=True)
    passes = []
    for n, layer in enumerate(encoder.model.encoder.layer):
        layer.output.register_forward_pre_hook(lambda *_, n=n: passes.append(n))
    encoder(texts()).sum().backward()
    assert passes == [0, 1, 1]
    # As in older releases, which leave this to the module around the layers.
    layer = transformers.modeling_layers.GradientCheckpointingLayer
    model = Auto(LAYERS["bert"], place, freeze=1).model
    monkeypatch.delattr(layer, "gradient_checkpointing")
    with pytest.raises(ValueError, match=r"recomputes nothing\. Upgrade it"):
        _checkpoint("x", model, is_partly_frozen=True)


def test_what_cannot_be_checkpointed(folder):
    with pytest.raises(ValueError, match="does not support gradient checkpointing"):
        Auto(of("image", 3, 32, 32), folder("resnet")[0], checkpointing=True)
