"""The shell of a report: nothing from outside becomes markup, nothing is loaded."""

import base64
import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcdd_lens.report.page import (
    Html,
    document,
    duration,
    embed_json,
    finite,
    html,
    interval,
    join,
    number,
    percent,
    table,
)


@given(st.text())
def test_text_in_an_element_reads_back_as_itself(text: str) -> None:
    import html as standard

    made = html("p", text, title=text)
    inside = re.fullmatch(r'<p title="(.*)">(.*)</p>', made, re.DOTALL)
    assert inside is not None
    assert [standard.unescape(part) for part in inside.groups()] == [standard.unescape(standard.escape(text))] * 2
    assert "<" not in inside.group(2) and '"' not in inside.group(1)


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_embedded_data_reads_back_and_cannot_end_its_block(data: object) -> None:
    block = embed_json("x", {"data": data})
    content = block.removeprefix('<script type="application/json" id="x">').removesuffix("</script>")
    assert json.loads(content) == {"data": data}
    assert not set(content) & set("<>&\u2028\u2029")


def test_children_are_escaped_unless_they_are_html_already() -> None:
    assert html("b", "a < b", html("i", "x"), None, ["&", 3]) == "<b>a &lt; b<i>x</i>&amp;3</b>"
    assert join(["<", Html("<br>")]) == "&lt;<br>"


def test_attributes_take_hyphens_and_bare_names() -> None:
    made = html("input", type="checkbox", checked=True, hidden=False, aria_label='say "hi"', class_="c", data_n=3)
    assert made == '<input type="checkbox" checked aria-label="say &quot;hi&quot;" class="c" data-n="3">'


def test_table_names_its_rows_and_escapes_its_cells() -> None:
    made = table(["name", "value"], [["<a>", 1]], caption="Cap")
    assert '<th scope="row">&lt;a&gt;</th><td>1</td>' in made
    assert "<caption>Cap</caption>" in made


def test_policy_allows_exactly_the_style_and_script_of_the_page() -> None:
    page = document("T", html("p", "hello"), data={}, styles=("run.css",), scripts=("run.js",))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and "default-src 'none'" in policy.group(1)
    for tag in ("style", "script"):
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(blocks) == 1
        digest = base64.b64encode(hashlib.sha256(blocks[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy.group(1)


def test_page_has_no_address_outside_itself() -> None:
    page = document("T", None, data={}, styles=("run.css",), scripts=("run.js",))
    outside = [
        address for address in re.findall(r"https?://[^\"' )]+", page) if address != "http://www.w3.org/2000/svg"
    ]
    assert outside == []
    assert not re.search(r"\b(src|href)=|@import|url\(|fetch\(|XMLHttpRequest|WebSocket", page)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.978, "97.8\u202f%"),
        (1.0, "100\u202f%"),
        (0.0, "0\u202f%"),
        (0.005, "0.5\u202f%"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_percent(value: float | None, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.6249, "1.62"), (0.0, "0"), (1.26e-5, "1.3e-5"), (12345.0, "12,345"), (None, "–")]
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "3.1 s"), (59.4, "59 s"), (95.3, "1 min 35 s"), (3720.0, "1 h 2 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_was_not_measured_is_empty() -> None:
    assert finite(None) == {} and finite({"value": None}) == {} and finite({"value": float("nan")}) == {}
    assert interval({"interval": [None, 1]}) is None and interval({}) is None
    assert interval({"interval": [0, 0.5]}) == (0.0, 0.5)
