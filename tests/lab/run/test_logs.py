import signal
import sys
from pathlib import Path

import pytest

from evenly.lab.run.logs import Logs, RunLog, TensorBoard, _plain
from evenly.lab.run.result import Result
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from evenly.stop import Stopped, stoppable

TRAINING = Training(
    data="synthetic(train=60,val=30,test=30,classes=3,information=4)",
    epochs=3,
    width=8,
    lr=0.05,
    batch_size=10,
    diagnose_every=1,
    precision="32",
)
CELL = Cell(TRAINING, "relearn(every=1,times=1)", 0)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run that is logged by TensorBoard, as every run is."""
    folder = tmp_path_factory.mktemp("alone")
    run_cell(CELL, folder)
    return folder


@pytest.fixture(autouse=True)
def _nothing_is_configured(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def same(one, two):
    """Whether two runs have the same settings and figures."""
    results = [Result.read(folder) for folder in (one, two)]
    texts = [
        [(folder / name).read_text() for name in ("config.yaml", "metrics.csv")]
        for folder in (one, two)
    ]
    return texts[0] == texts[1] and results[0].metrics == results[1].metrics


def test_tensorboard_has_settings_epochs_and_what_a_run_ends_with(alone):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(alone)).Reload()
    result = Result.read(alone)
    accuracies = [event.value for event in events.Scalars("val_accuracy")]
    assert len(accuracies) == 3
    assert max(accuracies) == pytest.approx(result.metrics["val"]["accuracy"])
    (final,) = events.Scalars("selected/test_accuracy")
    assert final.value == pytest.approx(result.metrics["test"]["accuracy"])
    settings = HParamsPluginData.FromString(
        events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    )
    assert settings.session_start_info.hparams["lr"].number_value == 0.05


def test_a_signal_waits_until_tensorboard_has_its_metrics(tmp_path, monkeypatch):
    board = TensorBoard(RunLog(Logs(), Cell(Training(), "joint", 0), tmp_path, {}))
    came = []

    def add(name, value, step):
        signal.raise_signal(signal.SIGTERM)
        came.append(name)

    monkeypatch.setattr(board._writer, "add_scalar", add)
    with pytest.raises(Stopped), stoppable():
        board.add({"loss": 1.0, "accuracy": 0.5}, 0)
    assert came == ["loss", "accuracy"]
    board.close(failed=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own, of SQLAlchemy
def test_mlflow_has_them_and_a_run_that_is_taken_up_goes_on_with_its_own(alone, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    logs = Logs.of("mlflow", tmp_path)
    logs.prepare()
    logs.prepare()  # as each worker does

    def stop(epoch, accuracy):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(CELL, tmp_path / "run", stop, logs=logs)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("evenly").experiment_id
    assert [run.info.status for run in client.search_runs([experiment])] == ["FAILED"]
    result = run_cell(CELL, tmp_path / "run", logs=logs)
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "relearn_every=1_times=1-0"
    assert run.data.params["lr"] == "0.05"
    assert run.data.params["method"] == CELL.method
    assert run.data.metrics["selected/test_accuracy"] == result.metrics["test"]["accuracy"]
    history = client.get_metric_history(run.info.run_id, "val_accuracy")
    assert sorted({point.step for point in history}) == [0, 1, 2]
    assert run.data.metrics["gap/m1"] >= 0
    assert same(alone, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*tfevents*"))  # which was not asked for


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_goes_where_its_variables_say(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    Logs(("mlflow",), tmp_path / "out").prepare()
    assert mlflow.MlflowClient(f"sqlite:///{tmp_path / 'other.db'}").get_experiment_by_name("mine")
    assert not (tmp_path / "out" / "mlflow.db").exists()


def test_mlflow_that_does_not_answer(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cr@127.0.0.1:1/x")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RuntimeError, match=r"http://me:\*\*\*@127.0.0.1:1/x does not") as raised:
        Logs(("mlflow",), tmp_path).prepare()
    assert "s3cr" not in str(raised.value)


@pytest.mark.slow
def test_wandb_stays_offline(alone, tmp_path):
    pytest.importorskip("wandb")
    result = run_cell(CELL, tmp_path / "run", logs=Logs.of("wandb,tensorboard", tmp_path))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    text = file.read_bytes()
    for said in (b"weight_decay", b"relearn(every=1,times=1)", b"selected/test_accuracy"):
        assert said in text
    assert text.count(b"val_accuracy") >= 3
    assert str(result.metrics["test"]["accuracy"]).encode() in text
    assert same(alone, tmp_path / "run")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_wrong_is_said(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("evenly.lab.run.logs.find_spec", lambda asked: None if asked == name else 1)
    with pytest.raises(
        RuntimeError, match=f"--logger {name} needs a package. Install it with pip install {name}"
    ):
        Logs.of(f"tensorboard,{name}", tmp_path)
    with pytest.raises(ValueError, match=r"--logger is empty\. Give .*, or leave it out"):
        Logs.of("", Path())
    with pytest.raises(ValueError, match=r"unknown logger 'wanbd'. Did you mean wandb\?"):
        Logs.of("wanbd", tmp_path)
    assert Logs.of("tensorboard,tensorboard", Path("a")) == Logs(("tensorboard",), Path("a"))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("val_accuracy", "val_accuracy"),
        ("selected/test_recall/class 1", "selected/test_recall/class 1"),
        ("gap/größe (cm)", "gap/gr__e _cm_"),
        ("recall/../x", "recall____x"),
        ("recall/a//b", "recall_a__b"),
        ("recall/", "recall_"),
    ],
)
def test_names_that_mlflow_takes(name, plain):
    assert _plain(name) == plain
