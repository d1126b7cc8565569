"""Errors a user can cause. Each is one line: what (key, file), the value received, what is allowed."""


class UserError(Exception):
    """A mistake the user can mend; stages print it as one line on stderr and exit with code 2."""


class ConfigError(UserError):
    """params.yaml holds an unknown key, a wrong type, a value out of range or an impossible combination."""


class DataError(UserError):
    """The data set on disk is not what its loader expects."""


class ArtifactError(UserError):
    """A file handed from stage to stage is missing, truncated or not what its name says."""
