"""One data set per file: ``Options`` and ``load(request, options) -> RawDataset``. File name = plug-in name."""
