"""The command as a user types it."""

import compileall
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import forked
import trees
from evenly import METHODS, cli
from evenly.cli import main
from evenly.cli.commands import COMMANDS, parser
from evenly.cli.options import _underscored, parsed
from evenly.data import DATASETS
from full import no_file_above
from hubs import dataset, on_the_hub

EXAMPLES = Path(__file__).parents[1] / "examples"
DATA = "synthetic(train=60,val=30,test=30,classes=3)"


def as_process(*arguments):
    return forked.run(forked.evenly, *arguments)


def started(*arguments, **options):
    """As the console script starts it, with all that imports cost."""
    command = [sys.executable, "-m", "evenly.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def in_this_process(*arguments):
    """The same without the seconds that imports take."""
    command = [*map(str, arguments)]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            status = main(command)
        except SystemExit as stopped:
            status = stopped.code
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def evenly(*arguments, run=in_this_process):
    ran = run(*arguments)
    assert ran.returncode == 0, ran.stderr
    return ran


def fails(message, *arguments, run=in_this_process):
    """A sentence and an exit status that a script can see."""
    ran = run(*arguments)
    assert ran.returncode not in (0, None)
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("asked", ["--help", "methods"])
def test_what_there_is_is_told_within_half_a_second(asked):
    started(asked)  # once, so that the byte code is there
    before = os.times()
    started(asked)
    after = os.times()
    # Of the processor, as a busy machine may keep it waiting.
    assert sum(after[2:4]) - sum(before[2:4]) < 0.5


def test_help_lists_every_command():
    text = evenly("--help").stdout
    assert all(re.search(rf"^  {command}  +\w", text, re.MULTILINE) for command in COMMANDS)


def test_methods_are_listed_without_torch():
    code = (
        "import sys; from evenly.cli import main; main(['methods']); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_the_command_alone_shows_how_to_begin():
    text = evenly().stdout
    assert text.count("\n  evenly ") == 3
    assert "evenly --help" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches(command):
    text = evenly(command, "--help").stdout
    options = re.findall(r"^  (--[\w-]+)", text, re.MULTILINE)
    assert all(len(re.findall(rf"^  {option}[ \n]", text, re.MULTILINE)) == 1 for option in options)
    assert not re.search(r"None|SUPPRESS|type:|\| null|--tuned", text)
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("command", "own"),
    [
        ("compare", {"--methods", "--seeds", "--settings"}),
        ("train", {"--method", "--seed"}),
        ("tune", {"--methods", "--trials", "--seeds", "--seed"}),
        ("study", {"--seeds"}),
    ],
)
def test_every_option_of_a_training_is_in_a_group(command, own):
    text = evenly(command, "--help").stdout
    own_part = re.search(r"^options:\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)[1]
    assert set(re.findall(r"^  (--[\w-]+)", own_part, re.MULTILINE)) == own


def test_the_options_of_a_training_are_in_groups():
    text = evenly("compare", "--help").stdout
    headings = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert headings == [
        "options", "data", "model", "training", "evaluation", "output", "cluster", "general"
    ]  # fmt: skip
    known = dict(zip(headings, re.split(r"^\w+:$", text, flags=re.MULTILINE)[1:], strict=True))
    for option, heading in {"limit-samples": "data", "stream": "data", "fusion": "model",
                            "batch-size": "training", "protocol": "evaluation",
                            "metrics": "evaluation", "out": "output", "jobs": "cluster",
                            "config": "general"}.items():  # fmt: skip
        assert f"\n  --{option} " in known[heading]
    assert "--batch-size N          Samples per step" in text
    assert "(default: 64)." in text


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("--batchsize", "--batch-size"),
        ("--batch_sise=3", "--batch-size"),
        ("--encoder.audio", "--encoders"),
        ("--sedes", "--seeds"),
    ],
)
def test_an_unknown_option_names_the_nearest(given, nearest):
    name = given.partition("=")[0].partition(".")[0].replace("_", "-")
    message = f"evenly: unknown option {name}. Did you mean {nearest}"
    fails(message, "compare", given, "3")
    fails("unknown option --xyzzy. See 'evenly compare --help'.", "compare", "--xyzzy")


def test_an_option_that_nobody_types_is_named_in_no_error(tmp_path):
    fails("unknown option --tune. See 'evenly compare --help'.", "compare", "--tune")
    best = tmp_path / "best.yaml"
    best.write_text("tuned: {trials: 1, seeds: 1, methods: {}}\nsettings: published")
    said = "--settings published and the tuned settings of best.yaml exclude each other"
    fails(said, "compare", "--config", best, "--out", tmp_path / "out")


def test_import_costs_next_to_nothing():
    """A fraction of torch's own import, whatever the processor, and none of the heavy parts."""
    code = (
        "import time; begun = time.process_time(); import torch; start = time.process_time(); "
        "import evenly; evenly.Relearn, evenly.Probe, evenly.OGMGE, evenly.diagnose; "
        "evenly.capture; "
        "print((time.process_time() - start) / (start - begun)); import sys; "
        "heavy = {'lightning', 'transformers', 'sklearn', 'plotly', 'matplotlib', 'pandas'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code]

    def share():
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        found, heavy = ran.stdout.splitlines()
        assert heavy == "[]"
        return float(found)

    assert any(share() < 0.3 for _ in range(3))  # other work makes some slower


def test_version():
    assert re.fullmatch(r"evenly \d+\.\d+\.\d+\n", evenly("--version", run=started).stdout)


def test_train_then_resume(tmp_path):
    out = tmp_path / "run"
    command = ["train", "--data", DATA, "--epochs", 2, "--width", 8, "--out", out]
    text = evenly(*command, run=as_process).stdout
    assert "chosen by validation accuracy" in text
    assert re.search(r"^test .*accuracy \d\.\d{3}.*accuracy/m1 \d\.\d{3}", text, re.MULTILINE)
    fails("is not empty. Continue the run in it with --resume", *command, run=as_process)
    assert evenly(*command, "--resume", run=as_process).stdout == text


@pytest.mark.slow
@pytest.mark.data
def test_from_clips_to_a_report(tmp_path, shared_data):
    """The way of the README: a table of clips, a store, a comparison."""
    script = EXAMPLES / "grid_table.py"
    clips, table, store = shared_data / "media_clips" / "grid", tmp_path / "t.csv", tmp_path / "s"
    made = subprocess.run([sys.executable, script, clips, table], capture_output=True, text=True)
    assert "'place' has 1 clip and is left out" in made.stdout
    ran = evenly("prepare", table, "--out", store, "--readers.audio", "spectrogram(front=mel)")
    assert "audio as spectrogram(front=mel,seconds=3.0); video as video(frames=2" in ran.stderr
    assert "train 5, val 3, test 3; 3 classes" in ran.stdout
    sources = json.loads((store / "dataset.json").read_text())["sources"]
    assert sources.pop(str(table)) == table.stat().st_size
    assert {Path(path).suffix for path in sources} == {".mpg"}
    assert "audio        image (1, 128, 301) float16, dB" in ran.stdout
    training = ("--epochs", 1, "--batch_size", 4, "--width", 8)
    ran = evenly("compare", "--data", store, *training, "--seeds", 1, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    assert "video, video (2, 3, 224, 224): FrameMean" in ran.stderr


def test_a_table_is_prepared_beside_its_results(tmp_path):
    rows = [f"{k % 2 + 0.1 * k},{-k if k % 5 else ''},{'ab'[k % 2]}" for k in range(60)]
    (tmp_path / "my.csv").write_text("x,y,label\n" + "\n".join(rows))
    training = ("--data", tmp_path / "my.csv", "--epochs", 2, "--width", 8)
    out = tmp_path / "out"
    ran = evenly("compare", *training, "--seeds", 1, "--methods", "joint", "--out", out)
    assert "my.csv has no test split" in ran.stderr
    assert "12 of 60 samples lack 'y': its encoder skips them" in ran.stderr
    assert (out / "store" / "dataset.json").exists()
    again = evenly("compare", *training, "--seeds", 2, "--methods", "joint", "--out", out)
    assert "joint-1: best epoch" in again.stderr
    assert "joint-0: best epoch" not in again.stderr
    evenly("train", *training, "--out", tmp_path / "one")
    assert (tmp_path / "one" / "store" / "dataset.json").exists()


def test_broken_files_are_listed(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    rows = [f"{'bad' if k == 5 else 'good'}.png,{k % 2}" for k in range(20)]
    (tmp_path / "my.csv").write_text("eye,label\n" + "\n".join(rows))
    prepare = ("prepare", tmp_path / "my.csv", "--out", tmp_path / "store")
    fails("1 of 20 samples cannot be used:\n  row 6: eye:", *prepare)
    fails("t.csv: there is no such file", "train", "--data", tmp_path / "t.csv")
    first = ("compare", "--data", tmp_path / "my.csv", "--out", tmp_path / "out")
    for message, asked in (
        ("unknown method 'jint'", ("--methods", "joint,jint")),
        ("unknown modality 'ear'", ("--methods", "unimodal(modality=ear)")),
        ("unknown encoder 'resnt'", ("--encoders.eye", "resnt")),
        ("--encoders names ['ear']", ("--encoders.ear", "resnet18")),
        ("unknown augmentation 'blur'", ("--augment.eye", "blur")),
        ("unknown modality 'ear' of --noise", ("--noise.ear", "2")),
        ("unknown modality 'ear' of --missing", ("--missing.ear", "0.2")),
        ("--seeds must be at least 1; found 0", ("--seeds", "0")),
        ("frames must be above 0; found 0", ("--readers.eye", "video(frames=0)")),
    ):
        fails(message, *first, *asked)
        assert not (tmp_path / "out").exists()  # nothing was decoded before
    fails(
        "unimodal(modality=...) must name one of eye", "train", *first[1:], "--method", "unimodal"
    )
    assert "1 of 20 samples were left out" in evenly(*prepare, "--skip-broken").stderr
    Image.new("RGB", (200, 90)).save(tmp_path / "good.png")
    fails("1 of its files have changed since it was made, such as", *prepare, "--skip-broken")


@pytest.mark.slow
def test_a_re_learning_that_may_be_chance_is_told_once_at_the_end(tmp_path):
    """Of 30 validation samples, a gap of noise is rarely beyond its error."""
    training = ("--data", DATA, "--epochs", 4, "--width", 8)
    method = "relearn(every=1)"
    found = "note: Re-learnt by a gap no larger than its standard error, so perhaps by chance: "
    ran = evenly("train", *training, "--method", method, "--out", tmp_path / "run")
    assert ran.stderr.count(f"{found}{method}. Set gap=stable, or take more") == 1
    methods = f"joint,{method}"
    more = ("--methods", methods, "--seeds", 2, "--diagnose_every", 0, "--out", tmp_path / "out")
    ran = evenly("compare", *training, *more)
    assert ran.stderr.count(found) == 1
    assert re.search(r"by chance: relearn\(every=1\) \([12] of 2 runs\)\.", ran.stderr)


def test_train_prints_the_notes_of_compare(tmp_path):
    ran = evenly("train", "--data", DATA, "--epochs", 2, "--width", 8, "--out", tmp_path / "run")
    assert "note: encoders: m1, vector (32,): MLP; m2, vector (32,): MLP." in ran.stderr
    assert "note: relearn: every=1, its schedule of 90 epochs scaled to 2." in ran.stderr
    assert (
        "note: relearn: its schedule does nothing in these 2 epochs (first before epoch 2"
        in ran.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "how"),
    [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_ctrl_c_and_a_scheduler_in_train(tmp_path, number, status, how):
    """Started as in the background of a script, where the shell has Ctrl-C ignored."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "evenly.cli", "train", "--data", DATA, "--epochs", "5000"]
    command += ["--width", "8", "--checkpoint_every", "0", "--out", str(out)]
    process = subprocess.Popen(
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not (out / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == status, said
    last = said.splitlines()[-1]
    assert last == f"evenly: {how}. Run the same command again with --resume to continue."
    assert "Traceback" not in said
    assert not list(out.glob(".*"))


def test_compare_then_report(tmp_path):
    out = tmp_path / "out"
    command = ["compare", "--data", DATA, "--epochs", 2, "--width", 8, "--seeds", 1, "--out", out]
    ran = evenly(*command)
    assert f"report: {out / 'report.html'}" in ran.stdout
    found, table = ran.stdout.split("\n\n", 1)
    assert "has the best mean (accuracy " in found.replace("\n", " ")
    assert "but 1 seed is too few to tell whether methods differ." in found.replace("\n", " ")
    assert "against joint" in table.partition("\n")[0]
    assert "note: relearn: every=1, its schedule of 90 epochs" in ran.stderr
    assert "placed by t-SNE" in (out / "report.html").read_text()
    (out / "report.html").unlink()
    picture, plane = tmp_path / "picture.svg", tmp_path / "plane.svg"
    text = evenly("report", out, "--figure", picture, "--projection-figure", plane).stdout
    assert (out / "report.html").exists()
    for path in (picture, plane):
        assert path.read_text().startswith("<?xml")
        assert str(path) in text


def test_a_settings_file(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"data: '{DATA}'\nepochs: 1\nwidth: 8\nseeds: 1\n")
    out = tmp_path / "out"
    evenly("compare", "--config", tmp_path / "mine.yaml", "--methods", "joint", "--out", out)
    assert (out / "runs" / "joint-0" / "result.json").exists()


BESIDE = ("logger: tensorboard,mlflow", "optimizer: adamw", "lr: 1.0e-05", "noise: {m1: 2.5}",
          "encoders: {m1: mlp, m2: 'mlp(x=[1, a])'}", "precision: 32", "data: '1e3'", "out: a%20b?",
          "skip_broken: true", "readers: {t: 'text(length=5)'}", "limit_samples: 5")  # fmt: skip
OWN = {
    "compare": ("methods: joint,relearn(every=5)", "seeds: 4", "cluster: 'tcp://a b:1'",
                "tuned: {trials: 1, seeds: 1, methods: {joint: {lr: 1e-5}}}"),
    "tune": ("methods: all", "trials: 3", "storage: 'postgresql://a:b%40c@d/e'", "seed: 7"),
    "study": ("name: figure4", "jobs: 2"),
    "train": ("method: pmr", "seed: 3", "resume: true"),
}  # fmt: skip


@pytest.mark.parametrize("command", OWN)
@pytest.mark.parametrize("recipe", [(), ("recipe: mosi-mult",)])
def test_what_print_config_prints_gives_the_same_settings(command, recipe, tmp_path):
    mine, printed = tmp_path / "mine.yaml", tmp_path / "printed.yaml"
    mine.write_text("\n".join((*recipe, *BESIDE, *OWN[command])))
    printed.write_text(evenly(command, "--config", mine, "--print_config").stdout)
    first, second = (parsed([command, f"--config={path}"]).as_dict() for path in (mine, printed))
    assert first.pop("given") < second.pop("given")  # the printed file holds every setting
    assert first == second
    assert first["lr"] == 1e-5
    assert (first["precision"], first["data"], first["out"]) == ("32", "1e3", "a%20b?")
    assert first["source"] == ("mosi(classes=2)" if recipe else None)
    bare = evenly(command, "--print_config").stdout
    printed.write_text(bare)
    assert evenly(command, "--config", printed, "--print_config").stdout == bare


def test_what_is_given_is_told_from_defaults():
    found = parsed(["study", "transformers", "--lr=0.1", "--encoders.visual", "vit"])
    assert found.given == {"lr", "encoders"}
    found = parsed(["study", "table", "--recipe", "cremad-resnet18", "--width", "8"])
    assert found.given >= {"width", "encoders", "optimizer", "lr", "source"}
    assert "fusion" not in found.given


def test_what_is_typed_changes_what_files_say(tmp_path):
    (tmp_path / "a.yaml").write_text("epochs: 5\nlr: 0.5\nencoders: {m1: mlp}\nskip-broken: true\n")
    (tmp_path / "b.yaml").write_text("epochs: 6\nrecipe: mosi-mult\nlimit-samples: 8\n")
    files = ["--config", str(tmp_path / "a.yaml"), f"--config={tmp_path / 'b.yaml'}"]
    for given in ([*files, "--epochs", "7"], ["--epochs", "7", *files]):
        found = parsed(["compare", *given, "--encoders.m2", "resnet"])
        assert (found.epochs, found.lr, found.limit_samples) == (7, 0.5, 8)
        assert found.encoders == {"m1": "mlp", "m2": "resnet"}
        assert found.skip_broken
        assert (found.recipe, found.fusion) == ("mosi-mult", "mult")
    assert parsed(["compare", *files]).epochs == 6
    given = ["--recipe", "cremad-mbt", *files]
    assert parsed(["compare", *given]).recipe == "cremad-mbt"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("methods: [joint, pmr]", "methods takes a text, found ['joint', 'pmr']."),
        ("width: null", "width takes a whole number, found null."),
        ("data:", "data takes a text, found null."),
        ("seeds: 2.0", "seeds takes a whole number, found 2.0."),
        ("lr: fast", "lr takes a number, found 'fast'."),
        ("schedule: x", "schedule takes 'step' or 'cosine' or 'plateau', found 'x'."),
        ("skip_broken: 1", "skip_broken takes true or false, found 1."),
        ("encoders: [mlp]", "encoders takes a mapping {text: text}, found ['mlp']."),
        ("noise: {on: 2}", "noise takes a text, found True."),
        ("tuned: 5", "tuned takes a mapping {text: any value}, found 5."),
        ("epoch: 3", "unknown setting 'epoch' of evenly compare. Did you mean epochs?"),
        ("config: more.yaml", "unknown setting 'config' of evenly compare."),
        ("print_config: true", "unknown setting 'print_config' of evenly compare."),
        ("trust: true", "sets 'trust', which only the command line may: --trust."),
        ("epochs: 1\nepochs: 2", "cannot read settings from c.yaml: 'epochs' stands in it twice."),
        ("lr-step: 1\nlr_step: 2", "sets 'lr_step' twice, with a dash and without."),
        ("- epochs", "holds a list instead of settings."),
        ("epochs", "holds a value instead of settings."),
        ("# all of it is a comment", "holds nothing instead of settings."),
        ("a: " + "[" * 2000, "c.yaml: it is nested more than 30 deep."),
        ("data: café".encode("latin-1"), "c.yaml: it is no text in UTF-8."),
        (bytes(range(256)), "c.yaml: it is no text in UTF-8."),
    ],
)
def test_a_file_that_holds_no_settings(content, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["compare", "--config", "c.yaml"]) == 1
    said = capsys.readouterr().err
    assert "c.yaml" in said
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize("command", OWN)
def test_every_setting_says_what_it_takes(command, tmp_path):
    known = parser(command).hints.keys() - {"help", "config", "print_config"}
    for name in known:
        (tmp_path / "c.yaml").write_text(f"{name}: [[1]]")
        with pytest.raises(ValueError, match=rf"c\.yaml: {name} takes .*, found \[\[1\]\]\."):
            parsed([command, "--config", str(tmp_path / "c.yaml")])


def test_a_file_of_settings_as_windows_writes_it(tmp_path):
    (tmp_path / "c.yaml").write_bytes("data: café.npz\r\nepochs: 3\r\n".encode("utf-16"))
    found = parsed(["compare", "--config", str(tmp_path / "c.yaml")])
    assert (found.data, found.epochs) == ("café.npz", 3)


def test_a_file_of_settings_that_is_not_there(tmp_path):
    fails("No such file or directory (no.yaml)", "compare", "--config", "no.yaml")
    fails(f"Is a directory ({tmp_path})", "compare", "--config", tmp_path)
    fails("unknown recipe 'nope'. Choose from: av-mnist-resnet", "train", "--recipe", "nope")
    (tmp_path / "c.yaml").write_text("recipe: nope")
    fails(
        "unknown recipe 'nope'. Choose from: av-mnist-resnet",
        "train",
        "--config",
        tmp_path / "c.yaml",
    )


class TestTrust:
    """What a file of settings names is not imported unless it is said; the names are harmless."""

    @pytest.fixture
    def received(self, tmp_path, monkeypatch):
        """A file that names a function of a module that notes its import."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "exp", raising=False)
        Path("exp.py").write_text("open('imported', 'w').close()\ndef yaml(**k): 1 / 0\n")
        Path("exp.yaml").write_text("encoders: {m1: 'exp.yaml(depth=3)'}\n")
        return ["--config", "exp.yaml", *map(str, SMALL)]

    @pytest.mark.parametrize("command", OWN)
    def test_nothing_is_imported(self, received, command):
        name = ["table"] if command == "study" else []
        fails("exp.yaml asks for 'exp.yaml' as the encoder of 'm1'", command, *name, *received)
        fails("add --trust, or --encoders.m1 'exp.yaml(depth=3)'.", command, *name, *received)
        assert not Path("imported").exists()

    @pytest.mark.parametrize("key", ["tuned", "encoders", "noise", "augment", "readers"])
    def test_no_class_is_imported_in_any_mapping(self, received, key):
        """jsonargparse imports what stands under this name where a value may be of any type."""
        asked = "{class_path: exp.yaml, init_args: {}}"
        for value in (asked, f"{{m1: {asked}}}", f"{{methods: {{joint: {asked}}}}}"):
            Path("exp.yaml").write_text(f"{key}: {value}")
            assert in_this_process("compare", *received).returncode == 1
            assert not Path("imported").exists()

    def test_another_encoder_of_the_same_modality(self, received):
        fails("unknown data set 'x'", "train", *received, "--encoders.m1", "mlp", "--data", "x")

    @pytest.mark.parametrize(
        "said",
        [
            ["--trust"],
            ["--encoders.m1", "exp.yaml(depth=3)"],
            ["--encoders.m1=exp.yaml(depth=3)"],
            ["--encoders", '{"m1": "exp.yaml(depth=3)"}'],
        ],
    )
    def test_what_is_said_is_imported(self, received, said):
        fails("'exp.yaml(depth=3)' cannot be built (division by zero)", "train", *received, *said)
        assert Path("imported").exists()

    @pytest.mark.parametrize("key", ["methods", "fusion", "metrics", "data"])
    def test_any_part_that_a_file_names(self, received, key):
        Path("exp.yaml").write_text(f"{key}: 'exp.load(depth=3)'\n")
        given = [text for text in received if "synthetic" not in text and text != "--data"]
        said = f"add --trust, or --{key} 'exp.load(depth=3)'."
        fails(said, "compare", *given)
        assert not Path("imported").exists()
        fails("the module exp has no 'load'", "compare", *given, "--trust")
        assert Path("imported").exists()


@pytest.mark.parametrize(
    "given",
    [
        "compare --data=~/t.csv --out=~/runs", "predict ~/run --data=~/t.csv --out=~/p.csv",
        "export ~/run --out=~/m.pt2", "report ~/run --figure=~/f.svg --projection_figure=~/p.svg",
        "diagnose ~/f.npz", "prepare cremad --folder=~/cremad --out=~/store", "datasets cremad ~/x",
    ],
)  # fmt: skip
def test_the_home_in_any_path(given, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = parsed(given.split())
    values = [value for value in vars(found).values() if isinstance(value, str)]
    assert sum(value.startswith("/home/me/") for value in values) == given.count("~")
    assert not [value for value in values if "~" in value]


def test_the_home_in_a_file_of_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("data: ~/t.npz")
    assert parsed(["compare", "--config=~/c.yaml"]).data == str(tmp_path / "t.npz")


def test_usage_is_as_it_is_typed():
    assert evenly("report", "--help").stdout.startswith("usage: evenly report FOLDER [")


def test_arguments_that_are_no_text(capsys):
    assert main(["compare", "--out", os.fsdecode(b"\xff")]) == 1
    assert r"'\udcff' is not valid UTF-8" in capsys.readouterr().err


def test_no_error_shows_a_password(tmp_path):
    address = "postgresql://me:s3cr/et@host/db?x=s3cr"
    ran = in_this_process("compare", "--seeds", address)
    assert "--seeds takes a whole number, found 'postgresql://me:***@host/db?***'" in ran.stderr
    ran = in_this_process("compare", "--sedes", address)
    assert "unknown option --sedes" in ran.stderr
    assert "s3cr" not in ran.stderr
    ran = in_this_process("predict", "run", "--data=x", address)
    assert "unexpected argument 'postgresql://me:***@host/db?***'" in ran.stderr
    assert "s3cr" not in ran.stderr
    ran = in_this_process("train", "--data", address)
    assert "s3cr" not in ran.stderr


@pytest.fixture
def features(tmp_path):
    """Two clear clusters; one of each four validation labels is wrong in `audio`."""
    path = tmp_path / "features.npz"
    labels = np.tile([0, 1], 24)
    x = (labels[:, None] * 9.0 + np.linspace(0, 1, 48)[:, None]).astype(np.float32)
    noisy = x.copy()
    noisy[24::4] = 9.0 - noisy[24::4] % 9
    split = np.repeat(["train", "val", "test"], [24, 16, 8])
    np.savez(path, labels=labels, split=split, audio=noisy, text=x)
    return path


def test_diagnose(features):
    lines = evenly("diagnose", features).stdout.splitlines()
    assert lines[0].split()[0] == "modality"
    cells = [re.sub(r"\(.*?\)", "", line).split() for line in lines[1:3]]
    rows = {name: [float(x) for x in row[:3]] for name, *row in cells}
    assert rows["text"] == [1.0, 1.0, 0.0]
    assert rows["audio"] == [1.0, 0.75, 0.25]
    assert "s.e." in evenly("diagnose", features, "--gap", "matched").stdout


def test_diagnose_advises_only_what_it_offers(features, tmp_path):
    with np.load(features) as file:
        arrays = dict(file)
    arrays["labels"] = arrays["labels"] + 0.5
    np.savez(tmp_path / "f.npz", **arrays)
    said = evenly("diagnose", tmp_path / "f.npz").stderr
    assert "If they are classes or labels, save them as whole numbers" in said


def test_diagnose_needs_validation_and_no_test(features, tmp_path):
    arrays = dict(np.load(features))
    np.savez(tmp_path / "a.npz", **{name: x[:40] for name, x in arrays.items()})
    assert "text" in evenly("diagnose", tmp_path / "a.npz").stdout
    np.savez(tmp_path / "b.npz", **arrays | {"split": np.repeat(["train", "test"], [24, 24])})
    fails("'split' marks no sample as val. Mark some", "diagnose", tmp_path / "b.npz")


def test_methods_lists_and_shows():
    text = evenly("methods").stdout
    lines = text.splitlines()
    for name, kind in METHODS.items():
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert line.endswith(kind.info.title)
        before = lines[: lines.index(line)]
        headings = [line for line in before if re.match(r"\w", line)]
        assert headings[-1].startswith(f"{kind.info.category}: ")
    assert re.search(r"^  agm +\d\.\d\dx  2023  Adaptive", text, re.MULTILINE)
    assert "Include the baselines in every comparison: unimodal, joint" in text
    found = re.findall(r"^  (\w+)", evenly("methods", "OG*").stdout, re.MULTILINE)
    assert found == ["ogm", "ogm_ge"]
    fails("unknown method 'x*'. Choose from: ", "methods", "x*")
    for name, kind in METHODS.items():
        text = evenly("methods", name).stdout
        assert kind.info.title in text
        assert kind.info.url in text
    assert "every=20" in evenly("methods", "relearn").stdout
    fails("unknown method 'relern'. Did you mean relearn?", "methods", "relern")


def test_datasets_lists_and_shows():
    text = evenly("datasets").stdout
    assert all(name in text for name in DATASETS)
    assert "'labels' (N)" in text
    assert "'NAME_kind'" in text
    assert "noise=" in evenly("datasets", "digits").stdout
    assert "evenly prepare NAME --folder DIR" in text
    fails("unknown data set 'digit'. Did you mean digits?", "datasets", "digit")


def test_an_official_data_set(tmp_path):
    text = evenly("datasets", "ucf101").stdout
    assert "https://www.crcv.ucf.edu/data/UCF101.php" in text
    assert "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi" in text
    assert "  split=1  number of the official split" in text
    folder = trees.ucf101(tmp_path / "tree", groups=(1, 8, 25))
    checked = evenly("datasets", "ucf101", folder)
    assert "train  2 of 2 samples are complete" in checked.stdout
    prepare = ("prepare", "ucf101(frames=2,size=[16,16])", "--out", tmp_path / "store")
    made = evenly(*prepare, "--folder", folder)
    assert "flow         video (2, 3, 16, 16) uint8, optical flow" in made.stdout
    assert "official split 1" in made.stderr
    fails("needs --folder, the folder of its files", *prepare)
    fails("no such folder. It should hold UCF-101/", *prepare, "--folder", tmp_path / "none")
    unknown = ("prepare", "ucf11", "--out", tmp_path / "x")
    fails("unknown official data set 'ucf11'. Did you mean ucf101?", *unknown)
    (folder / "UCF-101" / "YoYo" / "v_YoYo_g08_c01.avi").write_bytes(b"")
    fails("1 of 6 files are missing or empty:", "datasets", "ucf101", folder)


def test_a_folder_of_the_hub(tmp_path):
    train, rest = dataset(range(24)), dataset(range(24, 32))
    hub = on_the_hub(tmp_path / "hub", train=train, other=rest, test=rest)
    prepare = ("prepare", hub, "--out", tmp_path / "store", "--modalities", "photo,age")
    fails("row 1 has the split 'other'. Use train, val and test, or say what is which", *prepare)
    made = evenly(*prepare, "--splits.train", "train", "--splits.val", "other")
    assert "train 20, val 8, test 4; 2 classes" in made.stdout
    assert "hub: 8 samples are in none of the splits asked for: left out." in made.stderr
    fails("unknown column 'lable' of", *prepare, "--label", "lable")
    fails("--label needs a table or a folder of files", "train", "--data", DATA, "--label", "x")
    (tmp_path / "empty").mkdir()
    fails("nor pictures, sounds or clips, and is no finished store", "prepare", tmp_path / "empty",
          "--out", tmp_path / "x")  # fmt: skip


def test_wrong_input_gets_a_sentence(tmp_path, features):
    fails("unknown method 'jiont'. Did you mean joint?", "compare", "--methods", "jiont")
    fails("nothing.npz", "compare", "--data", tmp_path / "nothing.npz")
    fails("holds no comparison", "report", tmp_path)
    fails("--seeds must be at least 1", "compare", "--seeds", 0)
    fails("unknown option --dta. Did you mean --data?", "compare", "--dta=a.b/c.csv")
    told = "'what is given' is not a database address"
    fails(told, "tune", "--storage", "host=db user=me password=hunter2")
    fails("epochs", "compare", "--epochs", "many")
    images = tmp_path / "images.npz"
    labels = np.tile([0, 1], 12)
    split = np.repeat([0, 1, 2], 8)
    np.savez(images, labels=labels, split=split, eye=np.zeros((24, 4, 4), np.uint8))
    fails("a diagnosis takes features, one vector per sample", "diagnose", images)


SMALL = ("--data", DATA, "--epochs", 1, "--width", 8)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--weight-decay must be at least 0; found -1", ["compare", "--weight_decay", -1]),
        ("--diagnose-every must be at least 0; found -1", ["compare", "--diagnose_every", -1]),
        ("--jobs must be at least 1; found 0", ["compare", "--jobs", 0]),
        ("file cannot be a folder, because file is a file", ["compare", "--out", "file", *SMALL]),
        ("file/x cannot be a folder, because file is", ["compare", "--out", "file/x", *SMALL]),
        ("file cannot be a folder, because file is a file", ["train", "--out", "file", *SMALL]),
        ("no.pt", ["compare", "--methods", "relearn(initial=no.pt)", *SMALL]),
        ("every takes a whole number, found 'x'", ["compare", "--methods", "relearn(every=x)"]),
        ("every takes a whole number, found 1.5", ["train", "--method", "relearn(every=1.5)"]),
        ("start takes a whole number, found 'x'", ["train", "--method", "ogm_ge(start=x)"]),
        ("unknown method 'jint'", ["train", "--method", "jint", *SMALL]),
        ("--source takes the name of a data set; found t.csv", ["compare", "--source", "t.csv"]),
        ("--folder needs --source", ["compare", "--data", "t.csv", "--folder", "c"]),
        (
            "--folder selects cremad, but --data selects synthetic",
            ["compare", "--source", "cremad", "--folder", ".", "--data", "synthetic"],
        ),
        ("noise takes a number, found 'loud'", ["train", "--data", "digits(noise=loud)"]),
        (
            "encoder 'm1' (Linear) cannot take its input, of shape (32,)",
            ["train", "--encoders.m1", "torch.nn.Linear(in_features=7,out_features=4)", *SMALL],
        ),
        ("there is no module 'not_there'", ["compare", "--methods", "not_there.Mine", *SMALL]),
        ("there is no module 'not_there'", ["compare", "--data", "not_there.load"]),
        ("unknown fusion 'squared'. Choose from: concat", ["train", "--fusion", "squared", *SMALL]),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence_and_leaves_nothing(
    message, arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main([*map(str, arguments)]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_result(tmp_path):
    evenly("compare", *SMALL, "--methods", "joint", "--seeds", 1, "--out", tmp_path)
    (tmp_path / "runs" / "joint-0" / "result.json").write_text("{")
    fails("joint-0/result.json is damaged (Expecting property name", "report", tmp_path)


@pytest.mark.parametrize(
    "mistake",
    [
        "import json; json.loads('{')",  # ValueError of a library
        "from evenly.report.folder import _number; _number('x')",  # ValueError of float
        "from evenly.lab.statistics.tables import summary; summary([{}])",  # KeyError
        "from evenly.nn import encoder_for; encoder_for(None)",  # AttributeError
        "from evenly.data import save_npz; save_npz(0, [None], [], {})",  # TypeError of our own
        "from evenly.spec import load_yaml; load_yaml('{')",  # ValueError of ours for us to catch
    ],
)
def test_our_own_mistakes_keep_their_traceback(mistake):
    """Only a UserError is the user's."""
    code = (
        f"import sys, evenly.cli as cli; cli.command('methods').run = lambda _: exec({mistake!r})"
        "\nsys.exit(cli.main(['methods']))"
    )
    ran = forked.run(forked.code, code)
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr


def test_a_sentence_needs_no_sources(tmp_path):
    shutil.copytree(Path(cli.__file__).parents[1], tmp_path / "evenly")
    compileall.compile_dir(tmp_path, quiet=1, legacy=True)
    for path in tmp_path.rglob("*.py"):
        path.unlink()
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = started("compare", "--recipe", "mosi", env=env)
    assert ran.returncode == 1
    assert ran.stderr.startswith("evenly: unknown recipe 'mosi'. Did you mean mosi-mult? ")
    assert ran.stderr.count("\n") == 1


def test_a_traceback_shows_no_password():
    code = (
        "import sys, evenly.cli as cli; cli.command('methods').run = lambda _: {}['http://me:s3cr@h/x'];"
        "sys.argv[1:] = ['methods']; sys.exit(cli.main())"
    )
    ran = forked.run(forked.code, code)
    assert ran.returncode == 1
    assert ran.stderr.endswith("KeyError: 'http://me:***@h/x'\n")


def test_errors_of_the_system_name_the_path(tmp_path):
    (tmp_path / "config.yaml").write_text("methods: [joint]\nprotocol: fair\n")
    (tmp_path / "summary.csv").mkdir()
    fails("summary.csv is a folder. Give the name of a file.", "report", tmp_path)
    fails("xxx/runs). Check the path and your permissions", "report", tmp_path / ("x" * 300))


def test_a_full_disk_is_named_and_the_command_continues_when_there_is_room(tmp_path):
    training = ("train", *SMALL, "--method", "joint", "--out", tmp_path / "run", "--width", 64)
    with no_file_above(20_000):
        fails("best.ckpt). Free some space. Run the same command again with", *training)
    evenly(*training, "--resume")


@pytest.mark.parametrize("asked", ["compare --help", "methods relearn"])
def test_a_reader_that_has_enough(asked):
    command = f"{sys.executable} -m evenly.cli {asked} | head -1"
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ran.stderr == ""


def test_options_are_taken_with_dashes_and_modalities_as_they_are():
    given = ["--limit-samples=3", "--skip-broken", "--encoders.my-ear", "a-b.C", "--out"]
    expected = ["--limit_samples=3", *given[1:]]
    assert _underscored(given) == expected


@pytest.mark.parametrize(
    ("given", "seeds"), [([], 3), (["--protocol=paper"], 1), (["--protocol=paper", "--seeds=4"], 4)]
)
def test_published_habits_are_of_one_seed(given, seeds, monkeypatch, tmp_path):
    asked = []

    def compare(methods, seeds, *others):
        asked.append(seeds)
        raise ValueError("enough")

    monkeypatch.setattr("evenly.lab.many.compare.compare", compare)
    with pytest.raises(ValueError, match="enough"):
        main(["compare", *given, "--out", str(tmp_path)])
    assert asked == [seeds]


class TestCompletion:
    """In a real bash, as it calls the function when somebody types and presses the tab key."""

    @staticmethod
    @pytest.fixture(scope="class")
    def completed(tmp_path_factory):
        path = tmp_path_factory.mktemp("completion") / "evenly"
        path.write_text(evenly("completion").stdout)
        if (bash := shutil.which("bash")) is None:
            pytest.skip("bash is not installed")

        def completed(line):
            # Bash cuts words at `=` as well, and gives each of them a place.
            words = [word for word in re.split(r"(=)| ", line) if word is not None]
            code = (
                f"source {path}; complete -p evenly; COMP_WORDS=({shlex.join(words)}); "
                f"COMP_CWORD={len(words) - 1}; _evenly; printf '%s\\n' \"${{COMPREPLY[@]}}\""
            )
            ran = subprocess.run([bash, "-c", code], capture_output=True, text=True, check=True)
            assert ran.stderr == ""
            registered, *found = ran.stdout.splitlines()
            assert registered == "complete -o default -F _evenly evenly"
            return [word for word in found if word]

        return completed

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("evenly co", ["compare", "completion"]),
            ("evenly compare --batch", ["--batch-size"]),
            ("evenly compare --batch_", ["--batch-size"]),
            ("evenly train --re", ["--recipe", "--readers", "--resume"]),
            ("evenly compare --schedule ", ["step", "cosine", "plateau"]),
            ("evenly compare --schedule=c", ["cosine"]),
            ("evenly compare --class_weights b", ["balanced"]),
            ("evenly compare --methods og", ["ogm", "ogm_ge"]),
            ("evenly compare --methods joint,relearn,pm", ["joint,relearn,pmr"]),
            ("evenly train --method=relea", ["relearn"]),
            ("evenly methods og", ["ogm", "ogm_ge"]),
            ("evenly compare --recipe mosi", ["mosi-mult", "mosi-transformer"]),
            ("evenly compare --out ru", []),  # bash completes files
            ("evenly compare --tun", []),
        ],
    )
    def test_words(self, line, words, completed):
        assert completed(line) == words
