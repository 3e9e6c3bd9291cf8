import pytest

from evenly import METHODS
from evenly.lab.run.describe import facts, fidelity, needs
from golden.compare import COMPARISONS


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "ogm",
            ("the released code (GeWu-Lab/OGM-GE_CVPR2022, 343dc1d) within ", "e-1", ": a step on"),
        ),
        ("mmcosine", ("(GeWu-Lab/MMCosine_ICASSP23, 00ba0a9)", "apart from the doubts below")),
        ("lfm", ("with its divergence supplied",)),
        ("mslr", ("equal to a re-implementation (lihong2303/AGM_ICCV2023, 5a65542)",)),
        ("qmf", ("(QingyangZhang/QMF) within 6e-17", "on 2026-11-28")),
        ("smv", ("to the last bit",)),
        ("bss", ("the released code was read, not run (njustkmg/IJCAI25-BSS)",)),
        ("umt", ("no released code was found",)),
        ("arl", ("the released code was read, not run (shicaiwei123/ICCV2025-ARL)",)),
        ("joint", ("no released code was compared",)),
    ],
)
def test_fidelity_says_how_far_the_authors_code_is(name, parts):
    found = fidelity(name)
    assert [part for part in parts if part not in found] == []
    assert facts(name)["fidelity"] == found


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("remedy", "the optimiser"),
        ("relearn", "the optimiser (for some settings)"),
        ("agm", "the head"),
        ("mcr", "the head (for some settings)"),
        ("smv", "a Resampler"),
    ],
)
def test_what_only_some_settings_need_is_told_apart(name, part):
    assert part in needs(METHODS[name]).split(", ")


def test_each_method_that_has_a_recording_is_compared():
    assert {c.method for c in COMPARISONS.values()} - {"film"} <= {
        name for name in METHODS if fidelity(name).startswith("equal to ")
    }
