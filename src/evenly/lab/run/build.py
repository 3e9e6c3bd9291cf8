"""Model, optimiser and method of a run, from its settings."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any, Literal, get_type_hints

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.optim import Optimizer

from evenly.criteria import (
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    SigmoidFocal,
    balanced_weights,
)
from evenly.data import Data, Modality, load
from evenly.data.tasks import Classes, Task, criterion_of_labels
from evenly.errors import UserError
from evenly.imported import imported, is_own
from evenly.lab.run.augment import check_changes
from evenly.lab.run.optimizer import optimizer_of
from evenly.lab.run.settings import Cell, Training
from evenly.method import Criterion, Info, Method
from evenly.methods import METHODS, method_named
from evenly.methods.composed import Composed, check_unimodal, combined
from evenly.methods.relearn import Relearn
from evenly.nn import ENCODERS, HEADS, Head, LateFusion, encoder_for
from evenly.nn.heads import EnsembleHead
from evenly.nn.late_fusion import HeadMaker
from evenly.nn.pretrained import ResNet18
from evenly.nn.vision import without_classifier
from evenly.resampling import Resampler
from evenly.spec import Spec, converted, parse, together
from evenly.suggest import unknown
from evenly.targets import in_words


def load_data(training: Training) -> Data:
    """The data of a training: all or a limited number of samples, with the requested noise."""
    data = load(training.data, training.task).noisy(training.noise)
    return data if training.limit_samples is None else data.limited(training.limit_samples)


def with_missing(data: Data, cell: Cell) -> Data:
    """The data as a cell's run sees them, with modalities missing as its training requests.

    Raises:
        ValueError: If samples would lose all modalities.
    """
    return data.missing(cell.training.lacking, cell.seed)


def build_model(data: Data, cell: Cell) -> LateFusion:
    """The model of a cell: for a given seed, initial encoders are the same for any method.

    The head is the one that the method is made for; heads of one kind start equal, too.

    Raises:
        ValueError: If a user's encoder or head cannot be built or does not fit the data, or the
            method needs encoders that do not see each other.
    """
    training = cell.training
    check_names(cell, data.name, data.modalities)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        encoders = made_encoders(data.modalities, cell)
        # All of them, and before the head is made: lazy layers draw their weights here, and these
        # must not depend on the method's head and modality.
        _try_encoders(encoders, data, training.encoders)
        model = fused(encoders, data.task, cell)
        if model.head.meets and info_of(cell.method).separate:
            (name, *_) = [x.name for x in together(cell.method) if _kind(x).info.separate]
            raise _unsuitable(cell, name, *_SEPARATE)
        if is_own(parse(training.fusion).name):
            _try_head(model, data, training.fusion)
    for encoder in model.encoders.values():
        # benchmarks/train_step.py measures it. Other encoders keep their layout: with few channels,
        # oneDNN's channels-last gradients in bf16 write beyond their memory (torch 2.13).
        if isinstance(encoder, ResNet18):  # torch's own overloads do not know the argument
            encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.train()


def check_names(cell: Cell, data: str, modalities: Collection[str]) -> None:
    """Raises if a cell has unknown names, without needing the data, which may be hours away.

    Args:
        cell: Names a method, an optimiser, encoders and augmentations.
        data: Name of the data set, for the message.
        modalities: Its modalities.
    """
    settings, training = method_settings(cell), cell.training
    toy = [nn.Parameter(torch.zeros(1, 1))]
    optimizer_of(training.optimizer, toy, training.lr, training.weight_decay)
    if info_of(cell.method).alone:
        if "modality" not in settings:
            listed = ", ".join(modalities)
            raise UserError(f"{cell.method}(modality=...) must name one of {listed}.")
        if settings["modality"] not in modalities:
            raise unknown("modality", str(settings["modality"]), modalities)
    for option in ("noise", "missing", "missing_test", "lr_scale"):
        for name in getattr(training, option):
            if name not in modalities:
                what = f"modality of --{option.replace('_', '-')}"
                raise unknown(what, name, modalities)
    if strange := set(training.encoders) - set(modalities):
        raise UserError(
            f"--encoders names {sorted(strange)}, but {data} has the modalities "
            f"{sorted(modalities)}."
        )
    for text in training.encoders.values():
        _encoder(parse(text).name)
    _head(training.fusion)
    check_changes(training.augment, modalities)


def made_encoders(modalities: Mapping[str, Modality], cell: Cell) -> dict[str, nn.Module]:
    """An encoder for each modality: the user's own, or one that suits its shape."""
    own = cell.training.encoders
    return {
        name: _own(own[name], modality)
        if name in own
        else encoder_for(modality, cell.training.width)
        for name, modality in modalities.items()
    }


def fused(encoders: Mapping[str, nn.Module], task: Task, cell: Cell) -> LateFusion:
    """Encoders under the head that the method is made for; for some methods, one encoder."""
    info = info_of(cell.method)
    if info.alone:
        alone = method_settings(cell)["modality"]
        encoders = {alone: encoders[alone]}
    text = cell.training.fusion if info.head == "concat" else info.head
    head = _ensemble(task) if text == "ensemble" else _head(text)
    count, token = len(task.names), cell.training.missing_token and info.fused
    if isinstance(head, str):
        return LateFusion(encoders, count, head, missing_token=token)
    try:
        return LateFusion(encoders, count, head, missing_token=token)
    except Exception as error:
        raise UserError(
            f"fusion '{text}' cannot be built ({error}). Check its settings."
        ) from error


@torch.no_grad()
def _try_encoders(encoders: Mapping[str, nn.Module], data: Data, own: Collection[str]) -> None:
    """Passes two samples through the user's own encoders.

    This initialises lazy layers, and sets `out_features` if an encoder does not declare it.
    """
    inputs = data.split("train").__getitems__([0, 1])["inputs"]
    for name in (name for name in encoders if name in own):
        encoder = encoders[name].eval()
        what = f"encoder '{name}' ({type(encoder).__name__})"
        try:
            features = encoder(inputs[name])
        except Exception as error:
            raise UserError(
                f"{what} cannot take its input, of shape {data.modalities[name].shape} per "
                f"sample ({error}). Choose an encoder, or settings, for that shape."
            ) from error
        shape = tuple(getattr(features, "shape", ()))
        width = getattr(encoder, "out_features", None)
        if not isinstance(width, int) and len(shape) == 2 and shape[0] == 2:
            width = encoder.out_features = shape[1]
        if not isinstance(width, int):
            raise UserError(
                f"{what} returns {shape or type(features).__name__} for 2 samples, which does not "
                "say how wide its features are. Return one vector for each sample, (2, width)."
            )
        if shape != (2, width):
            raise UserError(
                f"{what} returns {shape or type(features).__name__} for 2 samples, but "
                f"`out_features` promises (2, {width}). Return one vector of that width per sample."
            )
        x = inputs[name]
        if data.modalities[name].kind == "video" and isinstance(x, Tensor):
            _check_time(what, encoder, x)


def _check_time(what: str, encoder: nn.Module, x: Shaped[Tensor, "n t c h w"]) -> None:
    """Raises if the first 3-D convolution of an encoder takes frames for channels.

    It is shown equal frames of unequal channels: only the dimension of the frames is constant.
    """
    given: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, args: given.extend(args[:1]))
        for module in encoder.modules()
        if isinstance(module, nn.Conv3d)
    ]
    if not hooks:
        return
    frame = torch.arange(x[0, 0].numel(), device=x.device) % 251
    encoder(frame.to(x.dtype).reshape(x.shape[2:]).expand(x.shape).contiguous())
    for hook in hooks:
        hook.remove()
    batches = [each for each in given[:1] if each.ndim == 5]  # else a single video
    if any(_is_constant(each, 1) and not _is_constant(each, 2) for each in batches):
        raise UserError(
            f"{what} passes videos, of shape (samples, frames, channels, height, width), to a 3-D "
            "convolution, which takes frames for channels. Swap them first: x.transpose(1, 2)."
        )


def _is_constant(x: Tensor, axis: int) -> bool:
    return x.shape[axis] > 1 and bool((x == x.narrow(axis, 0, 1)).all())


@torch.no_grad()
def _try_head(model: LateFusion, data: Data, text: str) -> None:
    """Passes two samples through a user's head, also without a modality."""
    batch, c = data.split("train").__getitems__([0, 1]), len(data.task.names)
    names = list(model.encoders)
    model.eval()
    for left_out in ("", *(names if len(names) > 1 else ())):
        inputs = {name: x for name, x in batch["inputs"].items() if name != left_out}
        given = [name for name in names if name != left_out]
        said = f"fusion '{text}'" + (f" without '{left_out}'" if left_out else "")
        try:
            found = model(inputs)
            shapes = {name: tuple(x.shape) for name, x in (found.unimodal or {}).items()}
            shape = tuple(found.logits.shape)
        except Exception as error:
            raise UserError(
                f"{said} fails ({type(error).__name__}: {error}). Its `logits(features)` takes the "
                "features of any modalities, by name; `self.filled(features)` has zeros for others."
            ) from error
        if shape != (2, c) or shapes != dict.fromkeys(given, (2, c)):
            raise UserError(
                f"{said} returns logits {shape} and {shapes} for 2 samples and {c} classes. Return "
                f"from `logits(features)` fused ones, (2, {c}), and as many of each modality given."
            )


def build_optimizer(model: LateFusion, training: Training) -> Optimizer:
    """The same optimiser for every method, with all trained parameters.

    Raises:
        ValueError: If there is none of that name, or it cannot be made.
    """
    learns = [p for p in model.parameters() if p.requires_grad]
    groups: Iterable[Any] = learns
    if scales := {k: x for k, x in training.lr_scale.items() if k in model.encoders}:
        mine = {name: set(model.encoders[name].parameters()) for name in scales}
        own = {name: [p for p in learns if p in mine[name]] for name in scales}
        others = set(learns).difference(*mine.values())
        groups = [{"params": [p for p in learns if p in others]}]
        groups += [{"params": own[name], "lr": training.lr * scales[name]} for name in scales]
    if parse(training.optimizer).name == "muon":
        groups = _by_form(model, groups if scales else [{"params": learns}])
    return optimizer_of(training.optimizer, groups, training.lr, training.weight_decay)


def _by_form(model: LateFusion, groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups for Muon, which takes matrices of hidden layers, but not embeddings or the head."""
    kept = set(model.head.parameters())
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            kept.update(module.parameters())
    if not any(p.ndim == 2 and p not in kept for p in model.parameters()):
        raise UserError(
            "--optimizer muon trains the matrices of hidden layers, but these encoders have "
            "none. Use another, such as adamw."
        )
    found = []
    for group in groups:
        for fits in (True, False):
            mine = [p for p in group["params"] if (p.ndim == 2 and p not in kept) is fits]
            found.append({**group, "params": mine, "matrices": fits})
    return found


def build_criterion(data: Data, training: Training) -> nn.Module | None:
    """The criterion of every method; None is its default, plain cross-entropy."""
    balanced = training.class_weights == "balanced"
    if data.task.name == "number":
        if balanced or training.focal or training.label_smoothing:
            raise UserError(
                f"{data.name} has numbers to regress on, so --class-weights, --focal and "
                "--label-smoothing do not apply. Leave them out."
            )
        return nn.L1Loss() if training.loss == "mae" else nn.MSELoss()
    if training.loss != "mae":
        raise UserError(
            f"--loss {training.loss} is for regression, but {data.name} has {data.task.name}. "
            "Leave it out."
        )
    if data.task.name == "labels":
        plain = criterion_of_labels(data.split("train").target, balanced=balanced)
        if training.focal:
            return SigmoidFocal(training.focal, plain.pos_weight)
        if training.label_smoothing:
            smoothing = training.label_smoothing
            return BinaryCrossEntropy(plain.pos_weight, label_smoothing=smoothing)
        return plain
    weight = None
    if balanced:
        weight = balanced_weights(data.split("train").target, len(data.class_names))
    if training.focal:
        return Focal(training.focal, weight)
    if weight is None and not training.label_smoothing:
        return None
    return CrossEntropy(weight, label_smoothing=training.label_smoothing)


def method_settings(cell: Cell) -> dict[str, Any]:
    """The settings of a cell's method, with those counted in epochs scaled to the run's length.

    A method's defaults are its paper's, for a training of the paper's length: a period of 20 epochs
    out of 90 would never occur in a run of 20. The user's settings are not scaled. For combined
    methods, these are the settings of all.

    Raises:
        ValueError: If a method or a setting is unknown, or a setting is of another type.
    """
    found: dict[str, Any] = {}
    for spec in together(cell.method):
        found |= _settings(spec, cell.training)
    return found


def info_of(method: str) -> Info:
    """The facts of a method, or of combined methods.

    Raises:
        ValueError: If one is unknown, or they cannot be combined.
    """
    infos = [_kind(spec).info for spec in together(method)]
    return combined(infos) if len(infos) > 1 else infos[0]


def check_together(method: str) -> None:
    """Raises if combined methods cannot train together, as far as their names tell."""
    check_unimodal([_kind(spec).info for spec in together(method)])


def _kind(spec: Spec) -> type[Method]:
    return method_named(spec.name)


def _settings(spec: Spec, training: Training) -> dict[str, Any]:
    kind = _kind(spec)
    known = inspect.signature(kind).parameters
    names = settings_of(kind)
    hints = get_type_hints(kind.__init__) if spec.name in METHODS else _hints(kind)
    given = {}
    for name, value in spec.settings.items():
        if name not in names:
            raise unknown(f"setting of {spec.name}", name, names)
        given[name] = converted(f"{spec.name}: {name}", value, hints.get(name, Any))
    scaled = {
        name: in_run(known[name].default, kind.info.epochs, training)
        for name in kind.info.in_epochs
    }
    return {**scaled, **given}


def _hints(kind: type[Method]) -> dict[str, Any]:
    """The types of the settings of a user's method, as far as its class declares them."""
    try:
        return get_type_hints(kind.__init__)
    except NameError:  # for names imported only for type checkers
        return {}


def in_run(epochs: int, paper: int, training: Training) -> int:
    """Converts a number of epochs in the paper's training to epochs of a run.

    A value other than 0 in the paper does not become 0 in a short run.
    """
    return max(round(epochs * training.epochs / paper), min(epochs, 1))


_PARTS = ("encoders", "criterion", "optimizer", "head", "sampler")
"""What a method receives from the training; all its other parameters are settings."""


def settings_of(kind: type[Method]) -> list[str]:
    """The names of a method's settings."""
    return [name for name in inspect.signature(kind).parameters if name not in _PARTS]


def build_method(
    cell: Cell,
    model: LateFusion,
    optimizer: Optimizer,
    sampler: Resampler,
    criterion: Criterion | None = None,
) -> Method:
    """The method of a cell, for a model's encoders and the parts of its training."""
    parts = {
        "optimizer": optimizer,
        "head": model.head,
        "sampler": sampler,
        "criterion": criterion,
    }
    found = []
    for spec in together(cell.method):
        settings, kind = _settings(spec, cell.training), _kind(spec)
        takes = inspect.signature(kind).parameters
        settings |= {name: part for name, part in parts.items() if name in takes}
        if "seed" in takes:  # its randomness is part of what varies between seeds
            settings.setdefault("seed", cell.seed)
        found.append(_made(spec, kind, _acted_on(spec.name, kind, model), settings))
        if found[-1].info.sums and not model.head.sums:
            raise _unsuitable(cell, spec.name, *_SUMS)
    if len(found) == 1:
        return found[0]
    check_unimodal([method.info for method in found])
    return Composed(*found)


def _made(
    spec: Spec, kind: type[Method], encoders: dict[str, nn.Module], settings: Mapping[str, Any]
) -> Method:
    if spec.name in METHODS:
        return kind(encoders, **settings)
    try:
        return kind(encoders, **settings)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"method '{spec.text}' cannot be built ({error}). It is called as {kind.__name__}("
            "encoders, criterion=..., and its settings by name)."
        ) from error


def frozen(encoders: Mapping[str, nn.Module] | nn.ModuleDict) -> list[str]:
    """The modalities whose encoder is entirely frozen."""
    return [
        name
        for name, encoder in encoders.items()
        if not any(p.requires_grad for p in encoder.parameters())
    ]


def _acted_on(name: str, kind: type[Method], model: LateFusion) -> dict[str, nn.Module]:
    """The encoders that a method receives: re-learning gets no frozen ones.

    Raises:
        ValueError: If it acts on encoders, and cannot do without a frozen one.
    """
    still = frozen(model.encoders) if kind.info.writes != "nothing" else []
    left = {key: encoder for key, encoder in model.encoders.items() if key not in still}
    if still and not (left and issubclass(kind, Relearn)):
        raise UserError(
            f"{name} acts on what encoders learn, but the encoder of "
            f"{', '.join(map(repr, still))} is frozen. Train a layer behind it, "
            "auto(pretrained=FOLDER,freeze=true,width=64), or leave the method out."
        )
    return left


def build_sampler(data: Data, cell: Cell, world: int = 1, rank: int = 0) -> Resampler:
    """The order of the training split, a function of seed and epoch, so that runs can resume.

    Args:
        data: Data of the run.
        cell: What runs.
        world: Number of processes that share the samples of each batch.
        rank: Rank of this process.
    """
    sampler = Resampler(data.split("train"), world, rank, seed=cell.seed)
    sampler.passes = cell.training.accumulate
    return sampler


def expanded(
    methods: Iterable[Spec],
    modalities: Iterable[str],
    task: Task | None = None,
    fusion: str = "concat",
) -> list[str]:
    """The methods of a comparison: 'all' is every one, 'unimodal' is each modality alone.

    Args:
        methods: The methods as the user named them.
        modalities: Modalities of the data.
        task: Task of the data, which limits 'all'; by default classes.
        fusion: The fusion, which limits 'all', too.

    Returns:
        Each method once, as 'name' or 'name(setting=value)'.
    """
    task = Classes(()) if task is None else task
    found: list[str] = []
    for spec in methods:
        if spec.name == "all" and not spec.settings:
            unfit = {*chain(*unsuited(fusion).values())}
            for name, kind in METHODS.items():
                if name not in unfit:
                    variants = _variants(name, kind, modalities)
                    found += [text for text in variants if takes_task(text, task)]
        elif spec.name in METHODS and METHODS[spec.name].info.alone and not spec.settings:
            found += _variants(spec.name, METHODS[spec.name], modalities)
        else:
            found.append(spec.text)
    return list(dict.fromkeys(found))


def left_out(task: Task | None = None) -> list[str]:
    """The methods, or their variants, that do not accept a task's targets; by default, classes."""
    task = Classes(()) if task is None else task
    found: list[str] = []
    for name, kind in METHODS.items():
        specs = [Spec(name, dict(settings)) for settings in kind.info.variants]
        unfit = [spec.text for spec in specs if not _fits(spec, task)]
        found += [name] if len(unfit) == len(specs) else unfit
    return found


def unsuited(fusion: str) -> dict[str, list[str]]:
    """The methods that need, by their defaults, what a fusion is not, by what they need."""
    free = {name: kind.info for name, kind in METHODS.items() if kind.info.head == "concat"}
    needs = {}
    if _is(fusion, "meets"):
        needs[_SEPARATE[0]] = [name for name, info in free.items() if info.separate]
    elif not _is(fusion, "sums"):
        needs[_SUMS[0]] = [name for name, info in free.items() if info.sums]
    return needs


def takes_fusion(method: str, fusion: str) -> bool:
    """Whether a method, or several in one, can do with a fusion, as far as its name tells."""
    info = info_of(method)
    return not (info.separate and info.head == "concat" and _is(fusion, "meets"))


def _is(fusion: str, fact: Literal["meets", "sums"]) -> bool:
    """Whether a class of heads declares a fact, whatever the encoders."""
    name = parse(fusion).name
    kind = HEADS[name] if name in HEADS else imported("fusion", name)
    return getattr(kind, fact, False) is True


_SEPARATE = (
    "encoders that do not see each other",
    "they do",
    "Use a fusion of features, such as concat, or leave the method out.",
)
_SUMS = (
    "fused logits that are the sum of the modalities' own",
    "they are not",
    "Use --fusion concat, sum or your own class with `sums = True`, settings that need no sum, or "
    "leave the method out.",
)
"""What a method may need of a fusion, what is the case instead, and what to do."""


def _unsuitable(cell: Cell, name: str, need: str, found: str, instead: str) -> UserError:
    """The error that a method needs what its fusion or the head of another method is not."""
    head, fusion = info_of(cell.method).head, f"--fusion {cell.training.fusion}"
    if head != "concat":
        fusion, instead = f"the head '{head}'", "Leave the method out."
    return UserError(f"{name} needs {need}, but with {fusion} {found}. {instead}")


def _fits(spec: Spec, task: Task) -> bool:
    return task.takes in _kind(spec).accepts(**spec.settings)


def takes_task(method: str, task: Task) -> bool:
    """Whether a method, or each of several in one, accepts the targets of a task."""
    return all(_fits(spec, task) for spec in together(method))


def check_task(cell: Cell, data: Data) -> None:
    """Raises if the method of a cell does not accept the targets of the data."""
    task = data.task
    for spec in together(cell.method):
        if _fits(spec, task):
            continue
        takes = in_words(_kind(spec).accepts(**spec.settings))
        raise UserError(
            f"{spec.name} takes {takes}, but {data.name} has "
            f"{in_words([task.takes])}. Leave the method out; "
            "'evenly methods NAME' lists what each takes."
        )


def _variants(name: str, kind: type[Method], modalities: Iterable[str]) -> list[str]:
    if kind.info.alone:
        return [Spec(name, {"modality": modality}).text for modality in modalities]
    return [Spec(name, dict(settings)).text for settings in kind.info.variants]


def _own(text: str, modality: Modality) -> nn.Module:
    """The user's choice of encoder, by name or by import path."""
    spec = parse(text)
    make = _encoder(spec.name)
    if spec.name in ENCODERS:
        make = partial(make, modality)
    elif "modality" in _parameters(make):
        make = partial(make, modality=modality)
    try:
        encoder = make(**spec.settings)
    except Exception as error:
        raise UserError(
            f"encoder '{text}' cannot be built ({error}). Check its settings."
        ) from error
    if not isinstance(encoder, nn.Module):
        raise UserError(
            f"encoder '{text}' is of the type {type(encoder).__name__}. Give a class that derives "
            "from torch.nn.Module, or a function that returns such a module."
        )
    return encoder if spec.name in ENCODERS else without_classifier(encoder, modality)


def _encoder(name: str) -> Callable[..., nn.Module]:
    """A function that makes the encoder of that name."""
    if name in ENCODERS:
        return ENCODERS[name]
    if not is_own(name):
        raise unknown("encoder", name, ENCODERS, "or an import path")
    found: Callable[..., nn.Module] = imported("encoder", name)
    if not callable(found):
        raise UserError(
            f"'{name}' is of the type {type(found).__name__}. An encoder is a class that derives "
            "from torch.nn.Module, or a function that returns such a module."
        )
    return found


def _parameters(make: Callable[..., Any]) -> Collection[str]:
    try:
        return inspect.signature(make).parameters
    except ValueError:  # for compiled code
        return ()


def _ensemble(task: Task) -> HeadMaker:
    """The head of an ensemble, which depends on what is predicted."""
    return lambda _, widths, count: EnsembleHead(widths, count, task.name)


def _head(text: str) -> str | HeadMaker:
    """A head by name, or a function that makes the user's own."""
    spec = parse(text)
    if not is_own(spec.name):
        return text
    kind = imported("fusion", spec.name)
    if not (isinstance(kind, type) and issubclass(kind, Head)):
        raise UserError(
            f"'{spec.name}' is of the type {type(kind).__name__}, and a fusion is a class that "
            "derives from evenly.nn.Head. Give the path of such a class."
        )
    if not spec.settings:
        return kind.on
    return lambda _, widths, count: kind(widths, count, **spec.settings)
