"""Data sets, the decoded store and training batches.

``sets/`` holds one data set per file; ``prepare`` turns any of them into one memory-mapped uint8 array with a samples
table; ``store`` reads it back without torch; ``batches`` and ``augment`` feed a training loop (the only torch here).
"""
