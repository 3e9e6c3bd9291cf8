from hypothesis import given
from hypothesis import strategies as st

from evenly.report.names import shortened, wrapped


def test_a_model_of_one_modality_is_called_so():
    assert shortened("unimodal(modality=text)") == "text alone"
    assert wrapped("unimodal(modality=text)") == ["text alone"]
    assert shortened("a name of thirty characters...") == "a name of thirty char…"


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
