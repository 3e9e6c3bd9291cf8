"""How often `evenly.checkup` is right, on cases with known truth.

    python benchmarks/verdicts.py               # those that no rule was chosen on
    python benchmarks/verdicts.py --set dev     # those that rules are chosen on
    python benchmarks/verdicts.py --keep held.jsonl --write    # all figures, and the page's tables

It also shows how well other measures name the suppressed modalities.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cases import oracle
from cases.case import FIRST, Built, Case, cases
from cases.plan import VERDICTS
from promise import Promise, report

import evenly
from evenly.diagnosis.linear_probe import linear_probe
from evenly.lab.trained.checkup import short
from evenly.modulation import discrepancy, scores

PAGE = Path(__file__).parents[1] / "docs" / "checkup.md"
MARK, END = "<!-- benchmarks: verdicts.py --write -->", "<!-- end -->"
UNCLEAR = "unclear"
PEERS = {
    "the published gap": "smallest in its model, and below",
    "a probe of the joint encoder": "less that of the best other modality, below",
    "OGM's score": "as a ratio to the others' mean, below",
}
"""Measures that name suppressed modalities, and which ones they name."""
THRESHOLDS = dict(zip(PEERS, (0.10, -0.09, 0.88), strict=True))
"""Thresholds that best separate suppressed modalities from others on the development cases."""


@dataclass(frozen=True)
class Record:
    """The results of a candidate; all but the first five only for confirmed cases.

    Attributes:
        name: Name of the case.
        plan: By modality, the intended verdict and the means.
        oracle: The oracle's measures by modality.
        built: Seconds of the joint training and the oracle.
        confirmed: Whether the oracle confirmed the intended verdicts of all modalities.
        seconds: Seconds of the checkup.
        verdict: The checkup's verdicts by modality.
        checkup: All that it found.
        peers: Other measures, by name and modality.
    """

    name: str
    plan: dict[str, dict[str, Any]]
    oracle: dict[str, dict[str, float]]
    built: float
    confirmed: bool
    seconds: float = 0.0
    verdict: dict[str, str] = field(default_factory=dict)
    checkup: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def truth(self) -> dict[str, str]:
        """The true verdicts by modality."""
        return {name: part["truth"] for name, part in self.plan.items()}

    @property
    def is_synthetic(self) -> bool:
        """Whether it is synthetic rather than from a real set."""
        return self.name.startswith("synthetic")


def recorded(case: Case) -> Record:
    """The results of a candidate; errors name it."""
    try:
        return _recorded(case)
    except Exception as error:
        error.add_note(f"in the case {case.name}")
        raise


def _recorded(case: Case) -> Record:
    """Trains it, runs the oracle and, if that confirms it, the checkup and the other measures.

    The checkup's short training takes as many epochs as in `evenly checkup RUN`.
    """
    start = time.perf_counter()
    built = case.build()
    known = oracle.measured(case, built)
    plan = {
        name: {
            key: getattr(part, key)
            for key in ("truth", "how", "encoder", "own", "agree", "copy", "input")
        }
        for name, part in case.plan.parts.items()
    }
    confirmed = {name: one.verdict for name, one in known.items()} == case.truth
    first = case.name, plan, oracle.as_dict(known), time.perf_counter() - start, confirmed
    if not confirmed:
        return Record(*first)
    start = time.perf_counter()
    found = evenly.checkup(
        *built[:5],
        initial=built.initial,
        optimizer=built.optimizer,
        epochs=short(built.epochs),
        seed=0,
        progress=False,
    )
    seconds = time.perf_counter() - start
    return Record(*first, seconds, dict(found.verdict), found.as_dict(), peers(built))


def peers(built: Built) -> dict[str, dict[str, float]]:
    """Other measures by modality: the lower, the more likely it is suppressed."""
    probe = evenly.Probe(built.model, built.forward, built.train, built.val)
    train, val = probe.features("train"), probe.features("val")
    gap = evenly.diagnose(train, val, gap="paper").gap
    least = min(gap, key=gap.__getitem__)
    reached = linear_probe(train, val)
    own = probe.features("train", lambda output, _: _own(output))
    score = scores(torch.stack(list(own.features.values())), own.target)
    ratio = dict(zip(own.features, discrepancy(score).tolist(), strict=True))
    return dict(
        zip(
            PEERS,
            (
                {name: value if name == least else math.inf for name, value in gap.items()},
                {
                    name: value - max(reached[other] for other in reached if other != name)
                    for name, value in reached.items()
                },
                ratio,
            ),
            strict=True,
        )
    )


def _own(output: evenly.Output) -> dict[str, torch.Tensor]:
    """The logits of each modality: its share, or those of the fusion with zeros for the others."""
    if output.unimodal is not None:
        return dict(output.unimodal)
    return {name: output.fuse({name: x}) for name, x in output.features.items()}


def split_best(values: list[tuple[float, bool]]) -> float:
    """The threshold below which there are most suppressed and fewest other modalities.

    Args:
        values: The value of each modality, and whether it is suppressed.
    """
    at = sorted({value for value, _ in values if math.isfinite(value)})
    borders = [(a + b) / 2 for a, b in itertools.pairwise(at)]
    return max(borders, key=lambda border: sum(_told(values, border)))


def _told(values: list[tuple[float, bool]], border: float) -> tuple[float, float]:
    """The shares of suppressed modalities below a threshold, and of others above it."""
    below = [value < border for value, suppressed in values if suppressed]
    above = [value >= border for value, suppressed in values if not suppressed]
    return sum(below) / max(len(below), 1), sum(above) / max(len(above), 1)


def pairs(records: list[Record]) -> list[tuple[str, str]]:
    """Truth and verdict of each modality."""
    return [(truth, one.verdict[name]) for one in records for name, truth in one.truth.items()]


def right(found: list[tuple[str, str]]) -> float:
    """The share of correct verdicts; an unclear one counts half."""
    return sum((a == b) + 0.5 * (b == UNCLEAR) for a, b in found) / max(len(found), 1)


def false(found: list[tuple[str, str]]) -> float:
    """The share of modalities that are not suppressed but called so."""
    others = [verdict for truth, verdict in found if truth != "suppressed"]
    return others.count("suppressed") / max(len(others), 1)


def confusion(found: list[tuple[str, str]]) -> Iterator[str]:
    """A table of verdicts by truth."""
    count, columns = Counter(found), (*VERDICTS, UNCLEAR)
    yield f"| truth \\ verdict | {' | '.join(columns)} | right |"
    yield f"| --- |{' ---: |' * (len(columns) + 1)}"
    for truth in VERDICTS:
        row = [count[truth, verdict] for verdict in columns]
        part = count[truth, truth] / max(sum(row), 1)
        yield f"| {truth} | {' | '.join(map(str, row))} | {part:.2f} |"


def naming(records: list[Record], thresholds: dict[str, float]) -> Iterator[str]:
    """A table of who names suppressed modalities, and how well."""
    yield "| named suppressed by | suppressed ones named | others named | mean of both right |"
    yield "| --- | ---: | ---: | ---: |"
    named = [
        (-1.0 if verdict == "suppressed" else 0.0, truth == "suppressed")
        for truth, verdict in pairs(records)
    ]
    yield _row("evenly.checkup", named, -0.5)
    for peer, rule in PEERS.items():
        border = thresholds[peer]
        yield _row(f"{peer}, {rule} {border:.2f}", values(records, peer), border)


def _row(who: str, found: list[tuple[float, bool]], border: float) -> str:
    hit, spared = _told(found, border)
    return f"| {who} | {hit:.2f} | {1 - spared:.2f} | {(hit + spared) / 2:.2f} |"


def values(records: list[Record], peer: str) -> list[tuple[float, bool]]:
    """A peer's measure of each modality, and whether it is suppressed."""
    return [
        (one.peers[peer][name], truth == "suppressed")
        for one in records
        for name, truth in one.truth.items()
    ]


def tables(candidates: list[Record], thresholds: dict[str, float]) -> Iterator[str]:
    """All tables for a set of cases."""
    records = [one for one in candidates if one.confirmed]
    found = pairs(records)
    drawn = sum(one.is_synthetic for one in records)
    yield (
        f"{len(records)} cases, {drawn} synthetic and {len(records) - drawn} of altered real sets, "
        f"with {len(found)} modalities. {len(candidates)} were built; the oracle did not confirm "
        f"the other {len(candidates) - len(records)}."
    )
    yield ""
    yield from confusion(found)
    yield ""
    yield from naming(records, thresholds)


def left_out(candidates: list[Record]) -> Iterator[str]:
    """The intended and actual verdicts of modalities in unconfirmed cases."""
    count: Counter[tuple[str, str, str]] = Counter()
    for one in candidates:
        for name, part in one.plan.items():
            became = oracle.Measures(**one.oracle[name]).verdict or "near a border"
            if became != part["truth"]:
                count[part["truth"], part["how"], became] += 1
    for (truth, how, became), times in count.most_common():
        yield f"  {times:4} built {truth} ({how}): {became}"


def run(which: str, limit: int | None, jobs: int, tell: Callable[[Record], None]) -> list[Record]:
    """All candidates of a set, or the first of them."""
    todo = cases(which)[:limit]
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        found = []
        for one in pool.map(recorded, todo):
            tell(one)
            found.append(one)
        return found


def write(lines: list[str], page: Path = PAGE) -> None:
    """The tables on the page, between two marks."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(MARK)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"{page} lacks {MARK} or {END}. Put both where the tables belong.")
    text = "\n".join(lines)
    page.write_text(f"{before}{MARK}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=FIRST, default="held", help="dev: rules are chosen on it")
    parser.add_argument("--limit", type=int, help="the first candidates only")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--keep", type=Path, help="a file for all figures, a line a candidate")
    parser.add_argument("--write", action="store_true", help=f"the tables, to {PAGE.name}")
    arguments = parser.parse_args()
    if arguments.keep:
        arguments.keep.write_text("", encoding="utf-8")

    def tell(one: Record) -> None:
        if arguments.keep:
            with arguments.keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps(vars(one)) + "\n")
        print(".x"[not one.confirmed], end="", file=sys.stderr, flush=True)

    start = time.perf_counter()
    candidates = run(arguments.set, arguments.limit, arguments.jobs, tell)
    took = time.perf_counter() - start
    records = [one for one in candidates if one.confirmed]
    thresholds = THRESHOLDS
    if arguments.set == "dev":
        thresholds = {peer: split_best(values(records, peer)) for peer in PEERS}
        print(f"\nchosen here: THRESHOLDS = {thresholds}")
    lines = list(tables(candidates, thresholds))
    print("", *oracle.margins(), "", *lines, "", *left_out(candidates), sep="\n")
    building = sum(one.built for one in candidates) / len(candidates)
    asking = sum(one.seconds for one in records) / max(len(records), 1)
    print(f"\n{took / 60:.1f} min; to build and confirm {building:.1f} s a case, ", end="")
    print(f"a checkup {asking:.1f} s\n")
    if arguments.write:
        write(lines)
    found = pairs(records)
    promises = [
        Promise("checkup: verdicts right, unclear ones half", right(found), 0.90),
        Promise("checkup: falsely called suppressed", false(found), 0.03, at_least=False),
    ]
    if arguments.limit is None:
        drawn = sum(one.is_synthetic for one in records)
        promises.append(Promise("checkup: synthetic cases with known truth", drawn, 200))
    report(promises)


if __name__ == "__main__":
    main()
