"""Stage prepare: the data set named in params.yaml → data/prepared (decoded images, samples table, meta.json)."""

from fairquant import stage
from fairquant.config import Config
from fairquant.data.prepare import prepare


def main(config: Config) -> None:
    """Check, split and decode the data set."""
    prepare(config, "data/prepared")


if __name__ == "__main__":
    stage.run(main, reads=("data", "datasets", "debug", "workers"), groups_known=False)
