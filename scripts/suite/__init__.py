"""Run methods × seeds as DVC experiments and make one table of them: ``python -m scripts.suite --help``, docs/suite.md.

``plan`` says which experiments there are, ``queue`` speaks to dvc and git, ``drive`` queues what is missing and waits.
All that is known about a suite stands in git and in DVC's queue; no file of its own can disagree with them.
"""
