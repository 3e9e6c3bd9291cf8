from hypothesis import given
from hypothesis import strategies as st

from evenly.report.names import shortened, wrapped


def test_a_model_of_one_modality_is_called_so():
    assert shortened(["unimodal(modality=text)"]) == {"unimodal(modality=text)": "text alone"}
    assert wrapped("unimodal(modality=text)") == ["text alone"]


def test_a_name_is_cut_only_as_far_as_it_is_told_apart():
    long = "a name of thirty characters..."
    assert shortened([long, "short"]) == {long: "a name of thirty char…", "short": "short"}
    every = [f"relearn(batchnorm=reestimated,every={i})" for i in (3, 7)]
    assert [*shortened(every).values()] == ["relearn(ba…ed,every=3)", "relearn(ba…ed,every=7)"]
    middle = [f"playing the instrument {i} of the orchestra" for i in (1, 2)]
    assert [*shortened([*middle, long]).values()] == [*middle, "a name of thirty char…"]


@given(st.sets(st.text("ab(=,)", max_size=30), min_size=1), st.integers(2, 20))
def test_no_two_names_become_alike(names, length):
    found = shortened(names, length)
    assert set(found) == names
    assert len(set(found.values())) == len(names)


def test_a_name_is_broken_between_settings():
    assert wrapped("relearn(batchnorm=reestimated,gap=shared,moments=cleared)", 30) == [
        "relearn(batchnorm=reestimated,", "gap=shared,moments=cleared)",
    ]  # fmt: skip
    assert wrapped("modality_dropout_of_all", 12) == ["modality_", "dropout_of_", "all"]
    assert wrapped("abcdefgh", 3) == ["abc", "def", "gh"]


@given(st.text(max_size=60), st.integers(1, 30))
def test_no_part_of_a_name_is_lost(name, width):
    if not name.startswith("unimodal(modality="):
        lines = wrapped(name, width)
        assert "".join(lines) == name
        assert max(map(len, lines)) <= width
