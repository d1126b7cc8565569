"""One training loop that takes loss terms: ``loop.fit``, and ``predict.predict`` for a trained model.

Import from the submodules; this package imports nothing, so that plug-in names can be listed without torch.
"""
