"""Budget curves of allocators, measured in one process per trained classifier: ``python -m scripts.curves --help``.

``methods`` and ``budgets`` say what is compared and what a budget means to each method, ``points`` makes settings of
params.yaml of them, ``workspace`` and ``session`` load a trained classifier once, ``sheet`` keeps the csv. The tables
and plots are those of ``fairquant.report.curves_tables`` and ``curves_plots``. See docs/curves.md.
"""
