"""`gradhat --help` and the errors never load torch, however far down. Each runs on its own."""

import os
import subprocess
import sys
from pathlib import Path

from reading import ROOT

HEAVY = frozenset({"torch", "transformers", "gymnasium", "reasoning_gym", "pyarrow"})
HELP = """
import sys
from gradhat.cli.main import main
sys.argv = ["gradhat", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def loaded(code: str, path: Path) -> set[str]:
    """Run `code` with `path` first on the module path; return the top-level modules loaded at its end."""
    report = "\nimport sys\nprint('\\n', *{m.split('.')[0] for m in sys.modules})"
    search = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
    end = subprocess.run(
        [sys.executable, "-c", code + report],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert end.returncode == 0, end.stderr
    return set(end.stdout.splitlines()[-1].split())


def test_help_loads_nothing_heavy() -> None:
    assert not loaded(HELP, ROOT / "src") & HEAVY


def test_errors_load_nothing_heavy() -> None:
    assert not loaded("import gradhat.errors", ROOT / "src") & HEAVY


def test_flags_of_a_file_of_questions_load_nothing_heavy() -> None:
    assert not loaded("import gradhat.cli.columns", ROOT / "src") & HEAVY


def test_a_heavy_import_further_down_is_found(tmp_path: Path) -> None:
    (tmp_path / "torch.py").touch()
    (tmp_path / "low.py").write_text("import middle")
    (tmp_path / "middle.py").write_text("import torch")
    (tmp_path / "lazy.py").write_text("def later():\n    import torch")
    assert "torch" in loaded("import low", tmp_path)
    assert "torch" not in loaded("import lazy", tmp_path)
