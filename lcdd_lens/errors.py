"""Errors that a user can cause and mend.

Every one says what was wrong, what was expected, and what to do. The command line turns them into exit code 2;
anything else that escapes is a defect of the library.
"""


class LensError(ValueError):
    """Base of all errors caused by input: files, models, options, data."""


class ModelError(LensError):
    """A model cannot be loaded, or two models do not belong together."""


class DataError(LensError):
    """Prompts, responses or files of them are unusable."""


class ArtefactError(LensError):
    """A saved carrier, trigger, score or run is damaged, of another version, or of another model."""


class ConfigError(LensError):
    """A configuration value is out of range or unknown."""


class TrainingError(LensError):
    """Training diverged or cannot be resumed."""
