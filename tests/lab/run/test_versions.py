"""Which versions runs used, and what is said where they differ."""

import sys

from evenly.lab.run import versions as versions_of
from evenly.lab.run.versions import joined, mixed, of_run, versions


def test_packages_that_are_loaded_and_those_of_the_users_parts(monkeypatch):
    monkeypatch.setattr(versions_of, "version", lambda name: f"1 of {name}")
    for name in ("transformers", "peft"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = versions({"encoders": {"x": "yaml.SafeLoader"}})
    assert found.items() >= {
        ("evenly", "1 of evenly"), ("torch", "1 of torch"), ("PyYAML", "1 of PyYAML")
    }  # fmt: skip
    assert not found.keys() & {"transformers", "peft"}
    monkeypatch.setitem(sys.modules, "peft", versions_of)
    assert versions({})["peft"] == "1 of peft"


def test_versions_are_joined_in_the_order_of_their_use():
    found = joined([{"torch": "2.9; 2.8"}, {"torch": "2.8", "peft": "1"}, {"torch": "2.10"}])
    assert found == {"torch": "2.9; 2.8; 2.10", "peft": "1"}


def test_a_run_has_used_others_if_it_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(versions_of, "versions", lambda settings: {"torch": "2"})
    known = {"versions": {"torch": "1"}}
    assert of_run(tmp_path, {}, {}) == of_run(tmp_path, known, {}) == {"torch": "2"}
    (tmp_path / "last.ckpt").touch()
    assert of_run(tmp_path, known, {}) == {"torch": "1; 2"}
    (tmp_path / "result.json").touch()
    assert of_run(tmp_path, known, {}) == {"torch": "1"}


def test_a_note_says_which_runs_have_which_version():
    one = {"torch": "2.8", "evenly": "0.1"}
    assert mixed({"joint-0": one, "joint-1": {"evenly": "0.1"}, "ogm-0": one}) == []
    two = {**one, "torch": "2.9"}
    runs = {"joint-0": one, "joint-1": one, "ogm-0": two, "ogm-1": {"torch": "2.8; 2.9"}}
    assert mixed(runs) == [
        "runs use several versions of torch, which may change results: 2.8 in joint-0 and joint-1; "
        "2.9 in ogm-0; 2.8, then 2.9 in ogm-1."
    ]
    assert len(mixed({"ogm-1": runs["ogm-1"]})) == 1
    many = {f"joint-{seed}": one for seed in range(11)} | {"ogm-0": two}
    assert "2.8 in joint-0, joint-1, " in mixed(many)[0]
    assert "joint-7 and 3 more; 2.9 in ogm-0." in mixed(many)[0]
