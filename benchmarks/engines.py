"""The costs of Ray and Dask as the engine for many runs: size, start, tasks, losses.

    python benchmarks/engines.py dask    # in an environment with `distributed`
    python benchmarks/engines.py ray     # in an environment with `ray`

prints JSON; results/engines.json has both, and docs/design.md the table. Each measurement runs in
its own interpreter, several times; figures are medians. Clusters are real processes on 127.0.0.1,
started by the engine's own commands: a head without a slot and two workers with one slot each.
Linux only (it reads /proc).
"""

import argparse
import ctypes
import importlib
import importlib.metadata
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

HOST = "127.0.0.1"
WORKERS = 2
LASTING = 2.0
"""Seconds of a task that is killed or frozen halfway."""
PATIENCE = 120.0
"""Seconds after which a result counts as lost."""
TTL = 15
"""Seconds of silence after which Dask considers a worker lost (its own default: 300)."""
NOT_COUNTED = {"torch", "numpy", "pip", "setuptools"}
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2)."""

Figures = dict[str, Any]


def empty() -> None:
    """A run that does nothing."""


def lasting(diary: str, seconds: float) -> str:
    """A run that records its start and end, each with the process, and returns its diary."""

    def note(word: str) -> None:
        with open(diary, "a") as file:
            file.write(f"{word} {os.getpid()}\n")

    note("begin")
    time.sleep(seconds)
    note("end")
    return diary


class Dask:
    """dask.distributed: a scheduler, and workers each under a nanny that restarts it."""

    package = "distributed"
    module = "distributed"
    ready = "Scheduler at:|Registered to:"
    environment: ClassVar = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{TTL}s"}
    client: Any = None

    def prepare(self, _folder: Path) -> None:
        """Nothing is needed before the first start."""

    def head(self, port: int, _folder: Path) -> list[str]:
        """Command that starts the head."""
        return ["dask", "scheduler", "--host", HOST, "--port", str(port), "--no-dashboard"]

    def worker(self, port: int, folder: Path, _index: int) -> list[str]:
        """Command that starts a worker with one slot."""
        slot = ["--nworkers", "1", "--nthreads", "1", "--no-dashboard"]
        return ["dask", "worker", f"tcp://{HOST}:{port}", *slot, "--local-directory", str(folder)]

    def local(self, folder: Path) -> None:
        """Starts two workers on this machine."""
        from distributed import Client, LocalCluster

        cluster = LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=str(folder),
        )
        self.client = Client(cluster)

    def join(self, port: int) -> None:
        """Becomes a client of the cluster."""
        from distributed import Client

        self.client = Client(f"tcp://{HOST}:{port}", timeout=5)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Submits a run."""
        return self.client.submit(function, *arguments, pure=False)

    def result(self, run: Any, seconds: float) -> Any:
        """Waits for a run."""
        return run.result(timeout=seconds)

    def members(self) -> int:
        """Workers that the head knows."""
        return len(self.client.scheduler_info(n_workers=-1)["workers"])

    def leave(self) -> None:
        """Ends the client, and with it what `local` started."""
        if self.client is not None:
            self.client.shutdown() if self.client.cluster else self.client.close()


class Ray:
    """Ray core: a GCS on the head, a raylet on each node, worker processes under it."""

    package = "ray"
    module = "ray"
    ready = "To terminate the Ray runtime"
    environment: ClassVar = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}

    def prepare(self, folder: Path) -> None:
        """Makes a token, in a separate home folder: the head listens on all addresses."""
        os.environ["HOME"] = str(folder)
        program = Path(sys.executable).with_name("ray")
        subprocess.run([program, "get-auth-token", "--generate"], check=True, capture_output=True)

    def head(self, port: int, folder: Path) -> list[str]:
        """Command that starts the head."""
        quiet = ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
        return ["ray", "start", "--head", f"--port={port}", "--num-cpus=0", *quiet, "--block"]

    def worker(self, port: int, _folder: Path, index: int) -> list[str]:
        """Command that starts a worker with one slot, at its own address as in a cluster."""
        where = [f"--address={HOST}:{port}", f"--node-ip-address=127.0.0.{2 + index}"]
        return ["ray", "start", *where, "--num-cpus=1", "--block"]

    def local(self, folder: Path) -> None:
        """Starts two workers on this machine."""
        import ray

        ray.init(
            num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, _temp_dir=str(folder)
        )

    def join(self, port: int) -> None:
        """Becomes a client of the cluster."""
        import ray

        ray.shutdown()
        ray.init(address=f"{HOST}:{port}", log_to_driver=False)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Submits a run."""
        import ray

        return ray.remote(function).remote(*arguments)

    def result(self, run: Any, seconds: float) -> Any:
        """Waits for a run."""
        import ray

        return ray.get(run, timeout=seconds)

    def members(self) -> int:
        """Workers that the head knows."""
        import ray

        return int(ray.cluster_resources().get("CPU", 0))

    def leave(self) -> None:
        """Ends the client, and with it what `local` started."""
        if ray := sys.modules.get("ray"):
            ray.shutdown()


Engine = Dask | Ray
ENGINES: dict[str, type[Engine]] = {"dask": Dask, "ray": Ray}


def parents() -> dict[int, int]:
    """Parent of each process that runs."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = int(parent)
    return found


def family(root: int) -> list[int]:
    """A process and all below it."""
    above = parents()
    found = [root] if root in above else []
    for member in found:
        found += [pid for pid, parent in above.items() if parent == member]
    return found


def tell(processes: list[int], message: signal.Signals) -> None:
    """Sends a signal to each that still runs."""
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, message)


def megabytes(processes: list[int]) -> Figures:
    """Memory of the processes together: resident, and with shared pages divided (PSS)."""
    total = {"Rss": 0, "Pss": 0}
    for pid in processes:
        with suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            for kind in total:
                total[kind] += int(re.findall(rf"^{kind}:\s+(\d+)", text, re.MULTILINE)[0])
    return {"rss_mb": total["Rss"] / 1024, "pss_mb": total["Pss"] / 1024}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def wait(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """The condition's value once it is true; TimeoutError with `what` if it stays false."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.02)
    raise TimeoutError(what)


class Cluster:
    """A head and two workers, each a family of processes."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder, self.port = engine, folder, free_port()
        self.log = (folder / "log").open("ab")
        self.head = self.start_head()
        commands = [engine.worker(self.port, folder, index) for index in range(WORKERS)]
        self.workers = [self.start(command) for command in commands]

    def start(self, command: list[str]) -> int:
        """Starts one of the engine's commands, from beside this interpreter, until it is up."""
        program = Path(sys.executable).with_name(command[0])
        before = self.up()
        pid = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        ).pid
        wait(lambda: self.up() > before, f"it does not come up: {command}")
        return pid

    def start_head(self) -> int:
        """Starts a head without knowledge of earlier ones.

        It has its own folder, since Ray would otherwise assign workers on the same machine to a
        head there.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix=""))
        return self.start(self.engine.head(self.port, folder))

    def up(self) -> int:
        """The number of commands that have reported being up."""
        return len(re.findall(self.engine.ready, Path(self.log.name).read_text()))

    def join(self) -> None:
        """Becomes a client and waits for all workers."""
        self.engine.join(self.port)
        wait(lambda: self.engine.members() == WORKERS, "the workers do not come")


@contextmanager
def workplace(engine: Engine) -> Iterator[tuple[Engine, Path]]:
    """A folder, with an end to every process started meanwhile."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1)  # we adopt orphans, to find and end them
    os.environ |= engine.environment
    with tempfile.TemporaryDirectory(prefix="engine", ignore_cleanup_errors=True) as name:
        try:
            engine.prepare(Path(name))
            yield engine, Path(name)
        finally:
            engine.leave()
            while left := family(os.getpid())[1:]:
                tell(left, signal.SIGCONT)
                tell(left, signal.SIGKILL)
                time.sleep(0.1)


def size(engine: Engine, _folder: Path) -> Figures:
    """Disk space and number of packages installed for the engine, including itself."""
    from packaging.requirements import Requirement

    names, found = [engine.package], {}
    for name in names:
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in NOT_COUNTED or key in found:
            continue
        distribution = importlib.metadata.distribution(name)
        files = {Path(file.locate()) for file in distribution.files or []}
        found[key] = sum(file.stat().st_size for file in files if file.exists())
        for line in distribution.requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                names.append(needed.name)
    return {"packages": len(found), "disk_mb": sum(found.values()) / 2**20}


def imported(engine: Engine, _folder: Path) -> Figures:
    """What `import` costs a client."""
    before, begin = megabytes([os.getpid()])["rss_mb"], time.monotonic()
    importlib.import_module(engine.module)
    seconds = time.monotonic() - begin
    return {"seconds": seconds, "rss_mb": megabytes([os.getpid()])["rss_mb"] - before}


def start(engine: Engine, folder: Path) -> Figures:
    """From nothing to the end of the first run with two local workers; then warm, empty runs."""
    importlib.import_module(engine.module)
    begin = time.monotonic()
    engine.local(folder)
    engine.result(engine.submit(empty), PATIENCE)
    first = time.monotonic() - begin
    tasks = 300
    for _ in range(20):
        engine.result(engine.submit(empty), PATIENCE)
    begin = time.monotonic()
    for _ in range(tasks):
        engine.result(engine.submit(empty), PATIENCE)
    one_by_one = (time.monotonic() - begin) / tasks
    begin = time.monotonic()
    for run in [engine.submit(empty) for _ in range(tasks)]:
        engine.result(run, PATIENCE)
    at_once = (time.monotonic() - begin) / tasks
    return {
        "seconds_to_first": first,
        "ms_a_run_one_by_one": 1e3 * one_by_one,
        "ms_a_run_all_at_once": 1e3 * at_once,
    }


def join(engine: Engine, folder: Path) -> Figures:
    """From the call that joins a warm cluster to the end of the first run; also with the import."""
    cluster = Cluster(engine, folder)
    with client(engine, cluster.port, "empty") as warm_up:
        warm_up.wait("done")
    begin = time.monotonic()
    with client(engine, cluster.port, "empty") as newcomer:
        seconds = newcomer.wait("done")["seconds"]
        return {"seconds": seconds, "seconds_of_process": time.monotonic() - begin}


def memory(engine: Engine, folder: Path) -> Figures:
    """Memory of the head, of an idle node with one slot that has run once, and of a client."""
    cluster = Cluster(engine, folder)
    cluster.join()
    for run in [engine.submit(lasting, os.devnull, 1.0) for _ in range(WORKERS)]:
        engine.result(run, PATIENCE)
    groups = {"head": family(cluster.head), "worker": family(cluster.workers[0])}
    groups["client"] = [os.getpid()]
    figures: Figures = {}
    for name, processes in groups.items():
        figures |= {f"{name}_{key}": value for key, value in megabytes(processes).items()}
        figures[f"{name}_processes"] = len(processes)
    return figures


def words(diary: Path) -> list[list[str]]:
    """Notes of a `lasting` run."""
    return [line.split() for line in diary.read_text().splitlines()] if diary.exists() else []


def count(diaries: list[Path], word: str) -> str:
    """How often each run noted the word, as "1 2"."""
    return " ".join(str(sum(note[0] == word for note in words(diary))) for diary in diaries)


def lose(
    engine: Engine, folder: Path, strike: Callable[[Cluster, int], list[int]], after: float
) -> Figures:
    """Strikes the first of two lasting runs halfway; wakes what is still alive; counts."""
    cluster = Cluster(engine, folder)
    cluster.join()
    diaries = [folder / f"diary{index}" for index in range(WORKERS)]
    runs = [engine.submit(lasting, str(diary), LASTING) for diary in diaries]
    wait(lambda: all(words(diary) for diary in diaries), "the runs do not begin")
    time.sleep(LASTING / 2)
    begin = time.monotonic()
    struck = strike(cluster, int(words(diaries[0])[0][1]))
    try:
        engine.result(runs[0], PATIENCE)
        fate = "result"
    except Exception as error:
        fate = type(error).__name__
    seconds = time.monotonic() - begin
    tell(struck, signal.SIGCONT)
    time.sleep(after)
    begun, ended = count(diaries, "begin"), count(diaries, "end")
    return {"seconds": seconds, "fate": fate, "begun": begun, "ended": ended}


def killed(engine: Engine, folder: Path) -> Figures:
    """A worker process is killed (-9) halfway through its run: seconds until its result."""

    def strike(_cluster: Cluster, pid: int) -> list[int]:
        tell([pid], signal.SIGKILL)
        return []

    return lose(engine, folder, strike, after=LASTING)


def frozen(engine: Engine, folder: Path) -> Figures:
    """A whole node stops (SIGSTOP) halfway through its run, and wakes when the result is there."""

    def strike(cluster: Cluster, pid: int) -> list[int]:
        node = next(found for found in map(family, cluster.workers) if pid in found)
        tell(node, signal.SIGSTOP)
        return node

    return lose(engine, folder, strike, after=LASTING + 3)


def head(engine: Engine, folder: Path) -> Figures:
    """The head is killed (-9) during a run, and restarts at its address two seconds later."""
    cluster = Cluster(engine, folder)
    diary = folder / "diary"
    with client(engine, cluster.port, "head", str(diary)) as old:
        old.wait("running")
        tell(family(cluster.head), signal.SIGKILL)
        killed_at = time.monotonic()
        time.sleep(2)
        cluster.head = cluster.start_head()
        told = old.wait("told", or_end=True)
        figures: Figures = {"told": told["what"], "told_after_s": told["at"] - killed_at}
        again = old.wait("again", or_end=True)
        figures |= {"same_client": again["what"], "same_client_after_s": again["at"] - killed_at}
    with client(engine, cluster.port, "empty") as newcomer:
        answer = newcomer.wait("done", or_end=True)
    figures |= {"new_client": answer["what"], "workers_back": answer.get("members", 0)}
    figures["commands_alive"] = sum(bool(family(pid)) for pid in cluster.workers)
    time.sleep(LASTING)
    return figures | {"begun": count([diary], "begin"), "ended": count([diary], "end")}


class Spoken:
    """A client process that reports in lines of JSON."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def wait(self, event: str, or_end: bool = False) -> Figures:
        """The next report, which must be the event, or the end of the process if allowed."""
        for line in self.process.stdout or []:
            if line.startswith("{"):
                said: Figures = json.loads(line)
                if said.pop("event") == event:
                    return said
        if not or_end:
            raise RuntimeError(f"the client ended before it was {event}")
        status = self.process.wait()
        return {"what": f"the client's process ended with status {status}", "at": time.monotonic()}


@contextmanager
def client(engine: Engine, port: int, task: str, diary: str = "") -> Iterator[Spoken]:
    """Starts a client of a running cluster; ends it at the end."""
    name = next(name for name, kind in ENGINES.items() if isinstance(engine, kind))
    command = [sys.executable, __file__, name, "--client", str(port), task, diary]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield Spoken(process)
    finally:
        process.kill()
        process.wait()


def say(event: str, **what: Any) -> None:
    """Reports to the measuring process."""
    print(json.dumps({"event": event, "at": time.monotonic(), **what}), flush=True)


def be_client(engine: Engine, port: int, task: str, diary: str) -> None:
    """Joins; then does an empty run, or a long one and, if it is lost, another."""
    importlib.import_module(engine.module)
    begin = time.monotonic()
    engine.join(port)
    if task == "empty":
        try:
            engine.result(engine.submit(empty), 30)
        except Exception as error:
            say("done", what=type(error).__name__, members=engine.members())
        else:
            seconds = time.monotonic() - begin
            say("done", what="result", seconds=seconds, members=engine.members())
        return
    run = engine.submit(lasting, diary, 20.0)
    wait(lambda: words(Path(diary)), "the run does not begin")
    say("running")
    try:
        engine.result(run, PATIENCE)
        say("told", what="result")
    except Exception as error:
        say("told", what=type(error).__name__)
    problem = ""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            engine.result(engine.submit(empty), 10)
            say("again", what="result")
            return
        except Exception as error:
            problem = type(error).__name__
            time.sleep(0.5)
    say("again", what=problem)


MEASUREMENTS: dict[str, Callable[[Engine, Path], Figures]] = {
    "size": size,
    "import": imported,
    "start": start,
    "join": join,
    "memory": memory,
    "killed": killed,
    "frozen": frozen,
    "head": head,
}


def measure(name: str, measurement: str) -> Figures:
    """One measurement in its own interpreter, with the machine's load."""
    load = os.getloadavg()[0]
    command = [sys.executable, __file__, name, "--one", measurement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:], "load": load}
    found: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    return found | {"load": load}


def summary(runs: list[Figures]) -> Figures:
    """Median of each figure; all values of words."""
    whole: Figures = {"repeats": len(runs)}
    for key in dict.fromkeys(key for run in runs for key in run):
        found = [run[key] for run in runs if key in run]
        if all(isinstance(value, int | float) for value in found):
            whole[key] = round(statistics.median(found), 3)
        else:
            whole[key] = list(dict.fromkeys(map(str, found)))
    return whole


def main() -> None:
    """Measures, or is one of the processes that measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--one", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    engine = ENGINES[given.engine]()
    if given.client:
        port, task, diary = given.client
        be_client(engine, int(port), task, diary)
        return
    if given.one:
        with workplace(engine) as (_, folder):
            figures = MEASUREMENTS[given.one](engine, folder)
        print(json.dumps(figures))
        return
    figures = {}
    for name in given.only:
        figures[name] = summary([measure(given.engine, name) for _ in range(given.repeats)])
        print(name, json.dumps(figures[name]), file=sys.stderr, flush=True)
    commands = (engine.head(8786, Path("FOLDER")), engine.worker(8786, Path("FOLDER"), 0))
    found = {
        "engine": given.engine,
        "version": importlib.metadata.version(engine.package),
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "commands": [" ".join(command) for command in commands],
        "figures": figures,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
