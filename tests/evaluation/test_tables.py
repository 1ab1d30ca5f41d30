"""The same rows in Markdown, LaTeX and HTML."""

from html.parser import HTMLParser

from align3r_jax.evaluation import tables

COLUMNS = (
    tables.Column("a", "Abs Rel", 3, "lower"),
    tables.Column("d", "δ < 1.25²", 2, "higher"),
    tables.Column("s", "source"),
    tables.Column("never", "never"),
)
TABLE = tables.Table(
    "50 % of a_b & <c>",
    "method",
    COLUMNS,
    (
        tables.Row("ours_|x", {"a": 0.12345, "d": 1.0, "s": "this run"}, strong=True),
        tables.Row("theirs", {"a": None, "d": 0.5, "s": "A & B, 3 %"}, missing="n.f."),
        tables.Row("count", {"a": 7}),
    ),
    ("a <note>",),
)


def test_markdown():
    text = tables.to_markdown([TABLE.used()])
    assert "| method | Abs Rel ↓ | δ < 1.25² ↑ | source |" in text
    assert "| **ours_\\|x** | **0.123** | **1.00** | **this run** |" in text
    assert "| theirs | n.f. | 0.50 | A & B, 3 % |" in text
    assert "| count | 7 | – | – |" in text and "- a <note>" in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line[:1] == "|"}
    assert widths == {5}


def test_latex_is_escaped_and_aligned():
    text = tables.to_latex([TABLE.used()])
    assert r"\caption{50 \% of a\_b \& $<$c$>$}" in text
    assert r"A \& B, 3 \%" in text and r"$\delta$ $<$ 1.25$^2$ $\uparrow$" in text
    assert r"\textbf{0.123}" in text
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {row.replace(r"\&", "").count("&") for row in rows} == {3} and r"{lrrr}" in text


def test_html_is_escaped_and_closed():
    opened = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    page = tables.to_html([TABLE.used()], "a & b", "x{}", [("desk", "plots/a.png")])
    Checker().feed(page)
    assert not opened
    assert "a_b &amp; &lt;c&gt;" in page and 'src="plots/a.png"' in page
    assert page.count("<th ") == 4 + 3
