"""Models × methods × widths × seeds in four phases, in one process: ``python -m scripts.analysis --help``.

``methods`` says how the methods are made of settings of params.yaml, ``points`` which points there are, ``baseline``
trains the classifiers that are not there yet, ``session`` measures a point as ``scripts.curves`` does and keeps its
predictions. The tables and figures are those of ``fairquant.report.analysis_write``. See docs/analysis.md.
"""
