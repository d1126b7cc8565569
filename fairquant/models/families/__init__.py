"""Model families, one per file: ``knows(name)``, ``names()`` and ``create(name, ...)``."""
