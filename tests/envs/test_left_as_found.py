"""Somebody else's code may close, switch and move what it likes: after it everything is as before."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from gradhat.envs.left_as_found import left_as_found


def switches() -> tuple[bool, torch.dtype, torch.device]:
    return torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()


@pytest.fixture(autouse=True)
def switched_back() -> Iterator[None]:
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize(
    "switch",
    [
        lambda: torch.set_grad_enabled(False),
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_device("meta"),
    ],
)
def test_torch_is_as_it_was(switch: Callable[[], None]) -> None:
    before = switches()
    with left_as_found():
        switch()
        assert switches() != before
    assert switches() == before
    with pytest.raises(KeyError), left_as_found():
        switch()
        raise KeyError
    assert switches() == before


def test_what_the_caller_chose_stays() -> None:
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    before = switches()
    with left_as_found():
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float16)
        torch.set_default_device("cpu")
    assert switches() == before


def test_torch_is_not_imported_for_it_and_is_as_it_begins_where_the_code_did() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["False", "True", "torch.float32", "cpu"], "")


LATE = """
import sys
from gradhat.envs.left_as_found import left_as_found
with left_as_found():
    pass
print("torch" in sys.modules)
with left_as_found():
    import torch
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
print(torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device())
"""

CLOSED = """
import os, sys
from gradhat.envs.left_as_found import left_as_found
kept, error = sys.stdout, sys.stderr
for close in (lambda: [os.close(n) for n in (0, 1, 2)], lambda: (kept.close(), error.close())):
    with left_as_found(), left_as_found():
        with left_as_found():
            pass
        close()
    print(open(os.devnull).fileno() > 2, file=kept)
print(sys.stdout is kept, file=error)
sys.stdout.close()
print(sys.stdout.closed, file=error)
"""


def test_standard_streams_that_were_closed_are_open_and_no_file_takes_their_number() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLOSED], input="", capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr.split()) == (["True", "True"], ["True", "True"])


def next_descriptor() -> int:
    number = os.dup(2)
    os.close(number)
    return number


def test_no_descriptor_is_left_over() -> None:
    before = next_descriptor()
    with left_as_found():
        pass
    assert next_descriptor() == before


def test_without_streams_and_with_none_that_can_be_held_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr("sys.stdout", object())
    inner = io.StringIO()
    monkeypatch.setattr("sys.stderr", inner)
    with left_as_found():
        sys.stderr.close()
    assert not inner.closed
    inner.close()
    assert inner.closed
