"""Which names are those of files of questions. Imports nothing heavy: the command line asks too."""

from pathlib import Path

SUFFIXES = (".jsonl", ".csv", ".parquet")
FORMS = "a .jsonl, .csv or .parquet file, or a folder that datasets saved"
STATE = "state.json"
"""The file in which datasets lists the files of a folder."""
SPLITS = "dataset_dict.json"
"""The file in which it lists the splits of a folder."""


def path_of(name: str) -> Path:
    """Return the path that `name` is; ~ is the home folder, of whoever has one."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def is_questions(name: str) -> bool:
    """Return whether `name` is that of a file of questions, or of a folder that `datasets` saved."""
    path = path_of(name)
    return path.suffix.lower() in SUFFIXES or any((path / saved).is_file() for saved in (STATE, SPLITS))
