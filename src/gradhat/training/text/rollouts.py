"""Every sampled trajectory of a text run on disk, token by token: what it learned from, and what it was
measured by."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from gradhat.envs.text.task import key_of
from gradhat.errors import RunError
from gradhat.training.run_folder import RunFolder, whole_file, writing
from gradhat.training.text.evaluate import Measurement
from gradhat.trajectories import Record, Trajectories

Phase = Literal["train", "before", "during", "after"]

SCHEMA = {
    "step": "int64",
    "phase": "string",
    "greedy": "bool",
    "group": "int64",
    "sample": "int64",
    "version": "int64",
    "prompt": "string",
    "answer": "string",
    "key": "string",
    "completion": "string",
    "reward": "float64",
    "parts": "string",
    "why": "string",
    "stop": "string",
    "prompt_tokens": "list<int64>",
    "tokens": "list<int64>",
    "logp": "list<float32>",
    "adv": "list<float32>",
    "mask": "list<bool>",
}
"""Columns of rollouts/ and evals/ and their types, the same in every file.

A row is one completion: number `sample` to the question `group`. `answer` and `key` are those of a held-out
question, null in training; `adv` is null without credit, `reward` where nobody could judge.
"""


def write_rollouts(
    run: RunFolder, step: int, sampled: Trajectories, chosen: Tensor, adv: Tensor | None
) -> None:
    """Write all that a step sampled as one parquet file, a row each, per-token columns as lists.

    `chosen` int64 `[N]` are the rows that were learned from, `adv` `[N, T]` their credit.
    """
    with writing(run.path):
        run.rollouts.mkdir(exist_ok=True)
    _write(run.rollouts / f"step_{step:06d}.parquet", rollout_rows(step, sampled, chosen, adv))


def write_evals(
    run: RunFolder, step: int, phase: Phase, version: int, measured: Measurement, *, greedy: bool = False
) -> None:
    """Add what was sampled on held-out questions to the file of its step.

    A measurement that is made again, after a resume, takes the place of the one before.
    """
    folder = run.path / "evals"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    file = folder / f"step_{step:06d}.parquet"
    kept = [row for row in _read(file) if (row["phase"], row["greedy"]) != (phase, greedy)]
    _write(file, [*kept, *eval_rows(step, phase, version, measured, greedy=greedy)])


def rollout_rows(
    step: int, sampled: Trajectories, chosen: Tensor, adv: Tensor | None
) -> Iterator[dict[str, Any]]:
    """Yield one row per trajectory. Token lists stop at its last step."""
    credit = {} if adv is None else dict(zip(chosen.tolist(), adv, strict=True))
    seen: Counter[int] = Counter()
    for i, record in enumerate(sampled.records):
        mask, group = sampled.mask[i], int(sampled.group[i])
        length = int(mask.nonzero().max()) + 1 if bool(mask.any()) else 0
        yield {
            "step": step,
            "phase": "train",
            "greedy": False,
            "group": group,
            "sample": seen[group],
            "version": int(sampled.version[i]),
            **_said(record),
            "prompt_tokens": list(sampled.numbers()[i]),
            "tokens": sampled.actions[i, :length].tolist(),
            "logp": sampled.logp[i, :length].tolist(),
            "adv": credit[i][:length].tolist() if i in credit else None,
            "mask": mask[:length].tolist(),
        }
        seen[group] += 1


def eval_rows(
    step: int, phase: Phase, version: int, measured: Measurement, *, greedy: bool
) -> Iterator[dict[str, Any]]:
    """Yield one row per completion of a measurement."""
    asked = zip(measured.questions, measured.prompts, measured.completions, measured.records, strict=True)
    for group, (question, prompt, completions, records) in enumerate(asked):
        for sample, (completion, record) in enumerate(zip(completions, records, strict=True)):
            yield {
                "step": step,
                "phase": phase,
                "greedy": greedy,
                "group": group,
                "sample": sample,
                "version": version,
                "answer": question.answer,
                "key": key_of(question),
                **_said(record),
                "prompt_tokens": list(prompt),
                "tokens": list(completion.tokens),
                "logp": list(completion.logp),
                "mask": [True] * len(completion.tokens),
            }


def _said(record: Record) -> dict[str, Any]:
    return {
        "prompt": record.prompt,
        "completion": record.completion,
        "reward": record.verdict.reward if record.verdict.judged else None,
        "parts": json.dumps(record.verdict.parts),
        "why": record.verdict.why,
        "stop": record.stop,
    }


def _schema() -> Any:
    import pyarrow  # pyright: ignore[reportMissingTypeStubs]

    library: Any = pyarrow
    kinds = {"int64": library.int64(), "float64": library.float64(), "float32": library.float32()}
    kinds |= {"string": library.string(), "bool": library.bool_()}
    kinds |= {f"list<{name}>": library.list_(kind) for name, kind in kinds.items()}
    return library.schema([(name, kinds[kind]) for name, kind in SCHEMA.items()])


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    from pyarrow import Table, parquet  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    table: Any = Table.from_pylist(list(rows), schema=_schema())  # pyright: ignore[reportUnknownMemberType]
    with whole_file(file) as partial:
        parquet.write_table(table, partial, compression="zstd")  # pyright: ignore[reportUnknownMemberType]


def _read(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that `_write` wrote. RunError for one that is damaged or another's."""
    from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]

    if not file.exists():
        return []
    try:
        table: Any = parquet.read_table(file)  # pyright: ignore[reportUnknownMemberType]
        return table.select(list(SCHEMA)).cast(_schema()).to_pylist()
    except Exception as error:  # pyarrow reports damage through many types
        raise RunError(
            f"read {file}: {type(error).__name__}: {error}. It holds what was sampled before, and is left as "
            "it is. Repair it or move it away, then go on: gradhat train --resume RUN"
        ) from error
