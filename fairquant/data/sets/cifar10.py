"""cifar10 (being written)."""
from fairquant.config.base import Section
from fairquant.data.raw import DataRequest, RawDataset


class Options(Section):
    """No settings."""


def load(request: DataRequest, options: Options) -> RawDataset:
    """Not there yet."""
    raise NotImplementedError
