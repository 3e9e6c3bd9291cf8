import math
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenly.spec import Spec, converted, load_yaml, numbers, parse, split


def test_a_bare_name_has_no_settings():
    assert parse(" joint ") == Spec("joint", {})
    assert parse("joint()") == Spec("joint", {})
    assert parse("joint").text == "joint"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3", 3),
        ("3.5", 3.5),
        ("1e-3", 0.001),
        ("-2E5", -2e5),
        ("true", True),
        ("null", None),
        ("matched", "matched"),
        ("[1,2.5,x]", [1, 2.5, "x"]),
        ("[1e-3,[2,3]]", [0.001, [2, 3]]),
        ("{a: 1,b: [2,3]}", {"a": 1, "b": [2, 3]}),
        ('"1e-3"', "1e-3"),
        ("'a,b)'", "a,b)"),
        (r'"a\",b"', 'a",b'),
        ("dir/file.pt", "dir/file.pt"),
        ("2024-01-02", "2024-01-02"),
        ("it's", "it's"),
        ("f(x)", "f(x)"),
    ],
)
def test_values_are_yaml(written, value):
    settings = parse(f"relearn(a={written}, every = 5)").settings
    assert settings == {"a": value, "every": 5}
    assert type(settings["a"]) is type(value)


def test_the_text_is_canonical():
    first = parse("relearn( times=2 , gap=matched,every=1e-3)")
    second = parse("relearn(every=0.001,gap='matched',times=2)")
    assert first.text == second.text == "relearn(every=0.001,gap=matched,times=2)"


def test_infinite_and_missing_numbers_survive():
    spec = parse(Spec("m", {"a": math.inf, "b": -math.inf, "c": math.nan}).text)
    assert spec.settings["a"] == math.inf
    assert spec.settings["b"] == -math.inf
    assert math.isnan(spec.settings["c"])


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126))
    | st.sampled_from(["yes", "null", "1e5", "0x1f", "1:30", "é", "~", "-", ".", "2024-01-02"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abcdef", min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.dictionaries(st.text("abcxyz_", min_size=1, max_size=6), values, max_size=3))
def test_the_text_reads_back(settings):
    spec = Spec("name", settings)
    assert parse(spec.text) == spec
    assert split(f"joint,{spec.text},other(a=1)") == [
        Spec("joint"),
        spec,
        Spec("other", {"a": 1}),
    ]


def test_a_list_is_cut_outside_brackets_only():
    specs = split("joint, relearn(every=[1,2],times=3),ogm_ge(alpha=0.5)")
    assert [spec.text for spec in specs] == [
        "joint",
        "relearn(every=[1,2],times=3)",
        "ogm_ge(alpha=0.5)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no name before its settings. Write name(setting=value)"),
        ("(a=1)", "'(a=1)' has no name before its settings"),
        ("a)", "'a)' has no name before its settings"),
        ("a(b=1", "'a(b=1' does not close (. Close it."),
        ("a(b=[1)", "'a(b=[1)' closes a bracket ')' that is not open"),
        ("a(b='x)", "does not close '. Close it."),
        ("a(b=1)c", "goes on after the closing parenthesis with 'c'"),
        ("a(b=1)(c=2)", "goes on after the closing parenthesis with '(c=2)'"),
        ("a(5)", "'a' cannot read '5' as a setting. Write setting=value."),
        ("a(b=)", "'a' cannot read 'b=' as a setting"),
        ("a(b=1,)", "'a' cannot read '' as a setting"),
        ("a(=1)", "'a' cannot read '=1' as a setting"),
        ("a(b c=1)", "'a' cannot read 'b c=1' as a setting"),
        ("a(b=1,b=2)", "'a' is given the setting 'b' twice. Give it once."),
        ("a(b=@x)", "'a' cannot read the value of 'b', found '@x'. Write a number"),
    ],
)
def test_a_wrong_text_is_one_sentence(text, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared whole below
        parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["a,,b", "a,", ",a", "a, ,b"])
def test_an_empty_place_in_a_list_is_refused(text):
    with pytest.raises(ValueError, match="has an empty place in its list of names"):
        split(text)


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="the list of names is empty"):
        split("  ")


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (True, bool, True),
        ("a", str | None, "a"),
        (None, int | None, None),
        ("b", Literal["a", "b"], "b"),
        (32, Literal["auto", "32"], "32"),
        (2, Literal[2, 7], 2),
        ([{"a": 1}], Any, [{"a": 1}]),
        ("a", Literal["a"] | None, "a"),
        ([1, 2.5], float | list[float], [1.0, 2.5]),
        ({"a": 1, "b": 2.5}, dict[str, float] | None, {"a": 1.0, "b": 2.5}),
        ([8, 12], tuple[int, int], (8, 12)),
    ],
)
def test_a_value_that_its_annotation_allows(value, hint, expected):
    found = converted("x", value, hint)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (3.0, int, "a whole number"),
        (True, int, "a whole number"),
        (1, bool, "true or false"),
        (1, str, "a text"),
        ("c", Literal["a", "b"], "'a' or 'b'"),
        ("a", int | None, "a whole number"),
        (True, Literal[1, 2], "1 or 2"),
        (["x"], float | list[float], "a number"),
        ("x", float | list[float], "a number or a list of numbers"),
        (1, set[int] | str, "a text"),
        (1, tuple[str, int], r"a list \[a text, a whole number\]"),
        ([1], tuple[int, int], r"a list \[a whole number, a whole number\]"),
        (1, dict[str, int] | None, r"a mapping {text: whole number}"),
        ({"a": "x"}, dict[str, float], "a number"),
    ],
)
def test_a_value_of_another_type(value, hint, wanted):
    with pytest.raises(ValueError, match=f"^x takes {wanted}, found ") as caught:
        converted("x", value, hint)
    inner = value["a"] if isinstance(value, dict) else value
    assert repr(inner).strip("[]") in str(caught.value)


BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\na: 2", "'a' stands in it twice"),
        (b"b: {a: 1, a: 2}", "'a' stands in it twice"),
        (b"a: caf\xe9", "it is no text in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00", "it is no text in UTF-8"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "it is nested more than 30 deep"),
        (b"a: " + b"[" * 40 + b"]" * 40, "it is nested more than 30 deep"),
        (b"a: &a [*a]", "it is nested more than 30 deep"),
        (BOMB.encode(), "it holds more than 100,000 values"),
        (b"a: !!python/object:builtins.list x", "could not determine a constructor .* in line 1"),
        (b"a: 1\n---\nb: 1", "another document"),
        (b"a: [1", "expected .* in line 1"),
        (b"a: " + b"1" * 5000, "limit"),
        (b"a: !!int x", "invalid literal"),
    ],
)
def test_yaml_that_nobody_means(content, message):
    with pytest.raises(ValueError, match=message):
        load_yaml(content)


def test_yaml_that_is_odd_and_right():
    assert load_yaml("a: é".encode("utf-16")) == {"a": "é"}
    assert load_yaml(b"\xef\xbb\xbfa: 2024-13-45\n") == {"a": "2024-13-45"}
    assert load_yaml(b"a: &x {b: 1}\nc: {<<: *x, b: 2}\nd: *x") == {
        "a": {"b": 1},
        "c": {"b": 2},
        "d": {"b": 1},
    }
    assert load_yaml(b"") is None


def test_numbers_of_plain_yaml():
    assert numbers("1e-3", float) == 0.001
    assert numbers({"a": "2E1", "b": 3}, dict[str, float]) == {"a": 20.0, "b": 3}
    assert numbers({"a": {"b": "1e-3", "c": "x"}}, dict[str, Any] | None) == {
        "a": {"b": 0.001, "c": "x"}
    }
    assert numbers("1e-3", str) == "1e-3"
    assert numbers("fast", float) == "fast"


@pytest.mark.parametrize("nested", ["[" * 3000 + "]" * 3000, "{b: 1, b: 2}"])
def test_settings_that_nobody_means(nested):
    with pytest.raises(ValueError, match="cannot read the value of 'x'"):
        parse(f"a(x={nested})")
