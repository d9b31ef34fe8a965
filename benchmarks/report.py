"""Make Report.pdf from Report.md.

pip install pypandoc_binary typst
python benchmarks/report.py
"""

import re

import pypandoc
import typst
from common import PROJECT, write_files

STYLE = """
#set page(paper: "a4", margin: (x: 1.5cm, y: 0.85cm))
#set text(10.5pt)
#set par(justify: true, leading: 0.37em, spacing: 0.45em)
#set list(spacing: 0.37em)
#set table(stroke: none, inset: (x: 3pt, y: 1.8pt))
#show table: set par(justify: false)
#show table: set text(9.5pt)
#show heading: set block(above: 0.6em, below: 0.4em)
#set image(width: 100%)
#show box: it => align(center, it)
#show figure: set block(spacing: 0.4em)
#show math.equation.where(block: true): set block(spacing: 0.45em)
"""
# The columns of each table in the report, in order. Where the first one takes what the others
# leave, a table is as wide as the page.
COLUMNS = (
    "(auto, 1fr)",  # configuration
    "(1fr, auto, auto)",
    "(1fr, auto, auto, auto)",
    "(5%,) * 10",  # the generated images
    "(45%, 45%)",  # other pictures
    "(45%, 52.5%)",
    "(1fr, auto, auto, auto, auto, auto)",
)


def typst_source(markdown):
    """The report as Typst source."""
    body = pypandoc.convert_text(markdown, "typst", "gfm+tex_math_dollars")
    parts = re.split(r"columns: (?:\d+|\([^)]*\)),", body)
    source = parts[0]
    for columns, part in zip(COLUMNS, parts[1:], strict=True):
        if "image(" in part.split("kind: table")[0]:
            part = part.replace("table.hline(),", "", 1)  # between pictures and their captions
        source += f"columns: {columns}," + part
    references = "#strong[References.]"
    source = source.replace(references, "#set text(8.2pt)\n" + references)
    # No line ends within a number with its error or its unit.
    source = source.replace(" ± ", "~±~")
    source = re.sub(r"(\d) %", r"\1~%", source)
    return STYLE + source


def main():
    markdown = (PROJECT / "Report.md").read_text(encoding="utf-8")
    pdf = typst.compile(typst_source(markdown).encode(), root=PROJECT)
    write_files({PROJECT / "Report.pdf": pdf})


if __name__ == "__main__":
    main()
