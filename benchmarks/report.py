"""Make Report.pdf from Report.md.

pip install pypandoc_binary typst
python benchmarks/report.py
"""

import pypandoc
import typst
from common import PROJECT, write_files

STYLE = """
#set page(paper: "a4", margin: 1.8cm)
#set text(10.5pt)
#set par(justify: true, leading: 0.5em, spacing: 0.62em)
#set list(spacing: 0.6em)
#set table(stroke: none, inset: (x: 3pt, y: 2.2pt))
#show table: set par(justify: false)
#show heading: set block(above: 0.8em, below: 0.5em)
#set image(width: 68%)
#show table: set image(width: 84%)
#show box: it => align(center, it)
#show figure: set block(spacing: 0.8em)
"""


def main():
    body = pypandoc.convert_file(PROJECT / "Report.md", "typst", "gfm+tex_math_dollars")
    # All tables of figures as wide as the page: the first column takes what the others leave.
    columns = {f"columns: {n},": f"columns: (1fr, {'auto, ' * (n - 1)})," for n in (3, 4, 6)}
    for narrow, wide in columns.items():
        body = body.replace(narrow, wide)
    pdf = typst.compile((STYLE + body).encode(), root=PROJECT)
    write_files({PROJECT / "Report.pdf": pdf})


if __name__ == "__main__":
    main()
