"""Make Report.pdf from Report.md.

pip install pypandoc_binary typst
python benchmarks/report.py
"""

import pypandoc
import typst
from common import PROJECT

from files import write_files

STYLE = """
#set page(paper: "a4", margin: 1.8cm)
#set text(10.5pt)
#set par(justify: true, leading: 0.55em, spacing: 0.75em)
#set list(spacing: 0.6em)
#set table(stroke: none, inset: (x: 3pt, y: 2.2pt))
#show table: set par(justify: false)
#show heading: set block(above: 0.9em, below: 0.5em)
#show table: set image(width: 86%)
#show figure: set block(spacing: 0.8em)
"""


def main():
    body = pypandoc.convert_file(PROJECT / "Report.md", "typst", "gfm+tex_math_dollars")
    pdf = typst.compile((STYLE + body).encode(), root=PROJECT)
    write_files({PROJECT / "Report.pdf": pdf})


if __name__ == "__main__":
    main()
