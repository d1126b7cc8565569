"""Post-processing: a finished two-class classifier decides by group, its weights untouched. One method per file.

Contract: a file ``<name>.py`` defines a frozen ``Options`` and

    fit(scores, positives, members, *, groups, options) -> Fitted

``scores``: what the classifier says of the N samples the method is fitted on (``Scores``); ``positives``: bool (N,),
their true class is the positive one; ``members``: int64 (N,), their groups, of which ``groups`` are the G names. A
method may look at these alone; who calls it gives it the validation split, never the test split.

``Fitted.chance(scores, members)`` is the probability with which each sample is decided positive, float64 (N,): the
methods draw some decisions by lot. Metrics are expectations over the lot (``fairquant.evaluate.mitigation``), so they
depend on no seed; ``Fitted.predict(scores, members, seed=)`` draws the decisions. ``Fitted.settings()`` is {group name:
{number by name}}, what was fitted. A group that a method cannot be fitted for (none of its samples are there, or a rate
is undefined) keeps the classifier's own decisions, is missing from the settings, and one warning names it.

Modules import torch nowhere, and scikit-learn and fairlearn inside functions only.
"""

from fairquant.postprocess._fitted import Fitted, Scores

__all__ = ["Fitted", "Scores"]
