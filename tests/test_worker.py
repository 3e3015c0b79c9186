"""The process on the other side of the pipe may hang, die or lie; this side notices and starts it afresh."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from gradhat.worker import PATIENCE, Worker, WorkerLost

SCRIPT = """
import json, os, sys, time
def reply(request, **found):
    print(json.dumps({"id": request["id"], **found}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    match request.get("do"):
        case "hang":
            time.sleep(60)
        case "die":
            os._exit(3)
        case "chatter":
            print("hello", flush=True)
        case "endless":
            while True:
                print("1" * 100_000, end="")
        case "deep":
            print("[" * 100_000, flush=True)
        case "list":
            print("[1]", flush=True)
        case "forge":
            reply(request, value=1.0)
            time.sleep(0.3)
            reply(request, value=0.0)
        case "pause":
            time.sleep(0.3)
            reply(request, value=1.0)
        case "deaf":
            reply(request)
            time.sleep(60)
        case "environment":
            reply(request, names=sorted(os.environ), folder=os.getcwd(), session=os.getsid(0))
        case _:
            reply(request, pid=os.getpid(), seen=request)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Any:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    worker = Worker(script, {"hello": 1})
    yield worker
    worker.stop()


def test_nothing_runs_before_the_first_use_and_then_one_process_serves(worker: Worker) -> None:
    assert worker._process is None
    opening = worker.start()
    assert opening["seen"]["hello"] == 1
    assert worker.call({"text": "é\ud800\n"}, 10)["seen"]["text"] == "é\ud800\n"
    assert worker.call({}, 10)["pid"] == opening["pid"] != os.getpid()


@pytest.mark.parametrize("do", ["die", "chatter", "list", "deep", "endless"])
def test_what_is_no_reply_is_a_loss_and_the_next_call_starts_afresh(worker: Worker, do: str) -> None:
    pid = worker.start()["pid"]
    with pytest.raises(WorkerLost):
        worker.call({"do": do}, 10)
    assert worker.call({}, 10)["pid"] != pid


def test_one_that_hangs_is_killed(worker: Worker) -> None:
    pid = worker.start()["pid"]
    began = time.monotonic()
    with pytest.raises(WorkerLost, match=r"more than 0\.2 s"):
        worker.call({"do": "hang"}, 0.2 / PATIENCE)
    assert time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_that_does_not_read_is_killed_however_long_the_request(worker: Worker) -> None:
    pid = worker.start()["pid"]
    worker.call({"do": "deaf"}, 10)
    began = time.monotonic()
    with pytest.raises(WorkerLost, match=r"more than 0\.2 s to read"):
        worker.call({"text": "a" * 1_000_000}, 0.2 / PATIENCE)
    assert time.monotonic() - began < 5
    assert worker.call({}, 10)["pid"] != pid


def test_a_long_request_arrives_whole(worker: Worker) -> None:
    text = "a\n" * 300_000
    assert worker.call({"text": text}, 10)["seen"]["text"] == text


def test_one_that_refuses_to_start_again_is_lost(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    worker = Worker(script, {})
    assert "error" not in worker.start()
    worker.stop()
    script.write_text(
        SCRIPT.replace("reply(request, pid", "reply(request, error='import', cause='no sympy', pid")
    )
    with pytest.raises(WorkerLost, match="did not start again: no sympy"):
        worker.call({}, 10)
    assert worker._process is None


def test_one_killed_from_outside_between_calls_costs_no_request(worker: Worker) -> None:
    pid = worker.start()["pid"]
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert worker.call({}, 10)["pid"] != pid


def test_a_forged_reply_is_found_out_at_the_next_call(worker: Worker) -> None:
    with pytest.raises(WorkerLost, match="something else"):
        worker.call({"do": "forge"}, 10)
        worker.call({}, 10)


def test_an_interruption_leaves_no_reply_for_the_next_request(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    import select

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    worker.start()
    with monkeypatch.context() as patch:
        patch.setattr(select, "select", interrupt)
        with pytest.raises(KeyboardInterrupt):
            worker.call({"do": "pause"}, 10)
    assert worker.call({"do": "other"}, 10)["seen"]["do"] == "other"


def test_it_inherits_nothing(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "secret")
    found = worker.call({"do": "environment"}, 10)
    assert "API_TOKEN" not in found["names"]
    assert set(found["names"]) <= {
        "LC_CTYPE",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "PYTHONHASHSEED",
        "PYTHONUTF8",
    }
    assert found["folder"] != str(Path.cwd())
    assert found["session"] != os.getsid(0)


def test_it_ends_with_its_owner(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    worker = Worker(script, {})
    pid = worker.start()["pid"]
    del worker
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
