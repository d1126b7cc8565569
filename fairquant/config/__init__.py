"""params.yaml as frozen, typed, validated objects. Nothing here imports torch."""

from fairquant.config.base import Section
from fairquant.config.load import load_config
from fairquant.config.schema import Config

__all__ = ["Config", "Section", "load_config"]
