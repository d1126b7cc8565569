r"""Tables for a paper: LaTeX with booktabs rules; any text is escaped, so that names may hold any sign."""

from __future__ import annotations

from collections.abc import Sequence

SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "−": r"$-$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "Δ": r"$\Delta$",
}
"""What LaTeX reads otherwise, and how it is written; letters of any script stay (utf-8 is LaTeX's default)."""


def escape_latex(text: str) -> str:
    r"""Return ``text`` so that LaTeX prints it as it is, white space folded.

    >>> print(escape_latex("female × <60 & 50_%"))
    female $\times$ \textless{}60 \& 50\_\%
    """
    return " ".join("".join(SIGNS.get(sign, sign) for sign in text).split())


def as_latex(cells: Sequence[Sequence[str]], *, caption: str, label: str) -> str:
    r"""Return a ``table`` float whose first row is the header: first column to the left, the others to the right.

    ``caption`` is escaped like every cell; ``label`` is written as given. Needs ``\usepackage{booktabs}``.

    >>> print(as_latex([("method", "n"), ("fq_qat", "3")], caption="Runs", label="tab:runs"))
    \begin{table}
      \centering
      \caption{Runs}
      \label{tab:runs}
      \begin{tabular}{lr}
        \toprule
        method & n \\
        \midrule
        fq\_qat & 3 \\
        \bottomrule
      \end{tabular}
    \end{table}
    """
    head, *rows = [_guarded(" & ".join(_cell(cell) for cell in row)) + r" \\" for row in cells]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escape_latex(caption)}}}",
            rf"  \label{{{label}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(cells[0]) - 1)}}}",
            r"    \toprule",
            f"    {head}",
            r"    \midrule",
            *(f"    {row}" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def _guarded(row: str) -> str:
    """After a line's end LaTeX reads ``[`` and ``*`` as its arguments; an empty group in front stops that."""
    return "{}" + row if row.startswith(("[", "*")) else row


def _cell(text: str) -> str:
    """Escape a cell; a sign before a number is a minus, not a hyphen."""
    escaped = escape_latex(text)
    return f"$-${escaped[1:]}" if escaped[:1] == "-" and escaped[1:2].isdigit() else escaped
