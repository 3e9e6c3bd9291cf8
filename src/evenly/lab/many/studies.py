"""The paper's experiments and related ones, each a comparison that works with any data set.

Wei, Li, Feng, Hu, "Diagnosing and Re-learning for Balanced Multimodal Learning", ECCV 2024,
https://arxiv.org/abs/2407.09705. Its tables and figures are repeated under the fair protocol: the
epoch is selected on validation, results have intervals, and what the paper's figures read from the
test split during training is read from validation. The λ, periods and noise that the paper used
beyond its defaults are unknown; those here are ours.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any

from evenly.data import Data, Modality
from evenly.errors import UserError
from evenly.files import write_csv, write_text
from evenly.lab.run.build import expanded, load_data, takes_fusion, takes_task
from evenly.lab.run.prepare import say
from evenly.lab.run.settings import Training
from evenly.lab.statistics.tables import SUMMARY, read_answers, read_results, summary
from evenly.report import Drawing, figure1, figure3, figure4, figure5, scores
from evenly.report.comparison import REFERENCE, Comparison
from evenly.report.folder import estimate_of, read_comparison
from evenly.report.formats import latex, markdown
from evenly.spec import Spec, parse, split
from evenly.targets import in_words

TABLE = (
    "unimodal,joint,multi_loss,ensemble,finetune,modality_dropout,g_blending,ogm_ge,greedy,pmr,"
    "agm,mslr,relearn"
)
"""The rows of the paper's tables, and those that every comparison should have."""
STRENGTHS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
PERIODS = (5, 10, 20, 30)
"""Periods, for the paper's 90 epochs."""
VARIANTS = (
    "relearn(gap=matched)",
    "relearn(gap=shared)",
    "relearn(gap=stable)",
    "relearn(restarts=1)",
    "relearn(batchnorm=reestimated)",
    "relearn(moments=cleared)",
    "relearn(batchnorm=reestimated,gap=stable,moments=cleared)",
)

Asked = Callable[[Training, Data, Set[str]], Training]


@dataclass(frozen=True)
class Study:
    """An experiment.

    Attributes:
        title: The paper's experiment, in a few words.
        shows: What to look at.
        methods: What is compared, given a length of training.
        draw: Draws the picture.
        reference: The method that all others are compared with.
        asked: Training settings it uses unless the user gives others, whose names come last.
    """

    title: str
    shows: str
    methods: Callable[[Training], str]
    draw: Drawing
    reference: str = REFERENCE
    asked: Asked = lambda training, data, given: training


def _three(training: Training, data: Data, given: Set[str]) -> Training:
    if len(data.modalities) < 3:
        raise UserError(
            f"this study needs three or more modalities; {data.name} has "
            f"{', '.join(data.modalities)}. 'evenly study table' takes any number."
        )
    return training


def _separable(training: Training, data: Data, given: Set[str]) -> Training:
    if data.task.name == "number":
        raise UserError(
            f"this study shows how encoders separate classes, but {data.name} has numbers to "
            "regress on. 'evenly study table' takes any data."
        )
    return training


def _noisy(training: Training, data: Data, given: Set[str]) -> Training:
    if not training.noise:
        some = next(iter(data.modalities))
        raise UserError(
            "choose the modality to make hardly informative, and its noise in standard "
            f"deviations: --noise.{some} 2. {data.name} has the modalities "
            f"{', '.join(data.modalities)}."
        )
    return training


def _transformers(training: Training, data: Data, given: Set[str]) -> Training:
    """Small transformers, trained accordingly; they meet in bottleneck tokens if all can."""
    own = training.encoders
    free = {name: x for name, x in data.modalities.items() if name not in own}
    found = {name: text for name, x in free.items() if (text := _transformer(x))}
    if not (own or found):
        raise UserError(
            f"{data.name} has only vectors, and a transformer needs steps. Use data with "
            "sequences, texts, images or videos."
        )
    usual: dict[str, Any] = {"optimizer": "adamw"}
    if "optimizer" not in given or parse(training.optimizer).name == "adamw":
        usual["lr"] = 3e-4  # AdamW's
    if len(found) == len(data.modalities):
        usual["fusion"] = "mbt"
    kept = [f"--encoders.{name} {text}" for name, text in own.items()]
    named = [name for name in ("optimizer", "lr", "fusion") if name in given]
    kept += [f"--{name} {getattr(training, name)}" for name in named]
    if kept:
        say([f"the study leaves as given: {', '.join(kept)}."])
    if own and "fusion" not in given:
        how = f"the encoders meet by --fusion {training.fusion}, as some are given"
        say([f"{how}. Add --fusion mbt if all return tokens of one width."])
    chosen = {name: value for name, value in usual.items() if name not in given}
    return replace(training, encoders={**own, **found}, **chosen)


def _transformer(modality: Modality) -> str:
    """A transformer of four layers and 64 features for one kind of input; empty for vectors."""
    if modality.kind in ("sequence", "text"):
        return "transformer"
    if modality.kind == "vector":
        return ""
    size = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
    }
    height, width = modality.shape[-2:]
    if modality.kind == "image" and modality.shape[0] == 1 and height != width and height >= 32:
        return Spec("ast", {"config": size}).text
    shared = gcd(height, width)
    patch = max(n for n in range(1, 17) if shared % n == 0 and 4 * n <= max(4, min(height, width)))
    return Spec("vit", {"config": {**size, "patch_size": patch}}).text


def _sensitivity(training: Training) -> str:
    """Joint training, which is λ = 0, and D&R with several strengths and periods."""
    scaled = [max(1, round(period * training.epochs / 90)) for period in PERIODS]
    strengths = [f"relearn(strength={value:g})" for value in STRENGTHS if value != 3.0]
    periods = [f"relearn(every={every})" for every in dict.fromkeys(scaled) if every != scaled[2]]
    return ",".join(["joint", "relearn", *strengths, *periods])


STUDIES: dict[str, Study] = {
    "table": Study(
        title="Tables 1 and 2: joint training and the balancing methods",
        shows="accuracy and macro-F1 of each method and of each modality alone, with "
        "differences from joint training and their intervals. Change the backbone with "
        "--recipe or --encoders",
        methods=lambda training: TABLE,
        draw=scores,
    ),
    "transformers": Study(
        title="Table of transformers",
        shows="the same table with a transformer per modality that has steps or patches, "
        "joined by bottleneck tokens (MBT) if all have, trained by AdamW at 3e-4",
        methods=lambda training: TABLE,
        draw=scores,
        asked=_transformers,
    ),
    "modalities": Study(
        title="Table of three or more modalities",
        shows="the same table for data with at least three modalities",
        methods=lambda training: TABLE,
        draw=scores,
        asked=_three,
    ),
    "scarce": Study(
        title="A hardly informative modality",
        shows="whether each method stays above joint training when one modality is noisy; give "
        "the noise with --noise.MODALITY LEVEL",
        methods=lambda training: TABLE,
        draw=scores,
        asked=_noisy,
    ),
    "figure1": Study(
        title="Figure 1: what each encoder has learnt",
        shows="the accuracy of each method against linear classifiers trained on its frozen "
        "encoders, one modality against the other; a larger dot is a better model. The "
        "paper does not say what its panel a shows",
        methods=lambda training: "unimodal,joint,g_blending,ogm_ge,greedy,pmr,agm,relearn",
        draw=figure1,
        asked=_separable,
    ),
    "figure3": Study(
        title="Figure 3: t-SNE of each modality's representations",
        shows="the test samples in the feature space of each encoder, for joint training and "
        "for D&R",
        methods=lambda training: "joint,relearn",
        draw=figure3,
        asked=_separable,
    ),
    "figure4": Study(
        title="Figure 4: gap, purity and accuracy along training",
        shows="whether re-learning closes the gap of an over-trained encoder, and how purity "
        "and accuracy change",
        methods=lambda training: "joint,relearn",
        draw=figure4,
    ),
    "figure5": Study(
        title="Figure 5: the strength λ and the period",
        shows="test accuracy by λ and by the number of epochs between re-learnings, compared "
        "with joint training. There are at most three re-learnings, so short periods end "
        "early",
        methods=_sensitivity,
        draw=figure5,
    ),
    "diagnosis": Study(
        title="What the diagnosis is worth",
        shows="published D&R against other estimators of the gap (matched, shared, stable), a "
        "single start of k-means instead of ten, re-estimated BatchNorm statistics, and "
        "cleared optimiser moments; differences are from D&R",
        methods=lambda training: ",".join(["joint", "relearn", *VARIANTS]),
        draw=scores,
        reference="relearn",
    ),
}
"""Studies by name."""


def planned(
    study: Study, training: Training, given: Set[str] = frozenset()
) -> tuple[Training, list[str]]:
    """The training and the methods of a study on some data.

    Args:
        study: The study.
        training: The settings asked for.
        given: Names of settings that the user chose, which a study leaves alone.

    Raises:
        ValueError: If the data do not allow it.
    """
    data = load_data(training)
    asked = study.asked(training, data, given)
    methods = expanded(split(study.methods(training)), data.modalities)
    fitting = [method for method in methods if takes_task(method, data.task)]
    if unfit := [method for method in methods if method not in fitting]:
        say([f"left out, as they do not take {in_words([data.task.takes])}: {', '.join(unfit)}."])
    if met := [method for method in fitting if not takes_fusion(method, asked.fusion)]:
        words = f"encoders that do not see each other, unlike --fusion {asked.fusion}"
        say([f"left out, as they need {words}: {', '.join(met)}."])
    return asked, [method for method in fitting if method not in met]


def write_study(name: str, out: Path, methods: Sequence[str]) -> list[Path]:
    """Writes table and picture of a study from the finished runs of a comparison.

    The folder may hold other methods, too; Holm's correction covers those of the study.

    Args:
        name: Name of the study.
        out: The folder of the comparison.
        methods: Methods of the study.

    Returns:
        The files: study-NAME.md, .tex, .csv and .svg. A report of the whole folder may write a
        table.md of its own.
    """
    study = STUDIES[name]
    rows = [row for row in read_results(out) if row["method"] in methods]
    lines = summary(rows, read_answers(out), study.reference)
    comparison = _restricted(read_comparison(out), methods, lines, study.reference)
    files = [out / f"study-{name}{ending}" for ending in (".md", ".tex", ".csv", ".svg")]
    write_text(files[0], markdown(comparison))
    write_text(files[1], latex(comparison))
    protocol = {"protocol": comparison.config["protocol"]}
    tested = [line | protocol for line in lines if line["split"] == "test"]
    write_csv(files[2], SUMMARY, tested)
    study.draw(comparison, out, files[3])
    return files


def _restricted(
    comparison: Comparison,
    methods: Sequence[str],
    lines: Sequence[Mapping[str, Any]],
    reference: str,
) -> Comparison:
    """The comparison, limited to some methods, with the findings on these."""
    return replace(
        comparison,
        config={**comparison.config, "methods": list(methods)},
        runs=[run for run in comparison.runs if run.method in methods],
        summary={
            (line["method"], line["split"], line["metric"]): estimate_of(line) for line in lines
        },
        results={key: found for key, found in comparison.results.items() if key[0] in methods},
        reference=reference,
    )
