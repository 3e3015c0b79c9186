"""Errors that a user can fix. Each says what was asked, what was found and what to do.

GradhatError
├── ConfigError     a recipe, a flag, or two settings that exclude each other
├── TaskError       a task that raises, hangs, or answers with something that is not a reward
├── ModelError      a model folder, file or alias that cannot be used
├── EstimatorError  an estimator or a loss of one's own that cannot be examined
└── RunError        a run folder that cannot be written, read or resumed
    └── DamagedError    a checkpoint that is not what was saved
"""


class GradhatError(Exception):
    """Base of every error that ends a command with one message instead of a traceback."""


class ConfigError(GradhatError):
    """A recipe, a flag or a combination of settings cannot be honoured."""


class TaskError(GradhatError):
    """A task broke its contract: it raised, hung, or returned something that is not a reward."""


class ModelError(GradhatError):
    """A model cannot be found, read or run."""


class EstimatorError(GradhatError):
    """An estimator of one's own is missing, raised, or returned something that is not a finite gradient."""


class RunError(GradhatError):
    """A run folder or a checkpoint cannot be written, read or resumed."""


class DamagedError(RunError):
    """A checkpoint could be read and is not what was saved: a file is missing, cut short or changed."""
