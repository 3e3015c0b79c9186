"""Which names are those of files of questions. Imports nothing heavy: the command line asks too."""

from gradhat.places import home, is_file

SUFFIXES = (".jsonl", ".csv", ".parquet")
FORMS = "a .jsonl, .csv or .parquet file, or a folder that datasets saved"
STATE = "state.json"
"""The file in which datasets lists the files of a folder."""
SPLITS = "dataset_dict.json"
"""The file in which it lists the splits of a folder."""


def is_questions(name: str) -> bool:
    """Return whether `name` is that of a file of questions, or of a folder that `datasets` saved."""
    path = home(name)
    return path.suffix.lower() in SUFFIXES or any(is_file(path / saved) for saved in (STATE, SPLITS))
