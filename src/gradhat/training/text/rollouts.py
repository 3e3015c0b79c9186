"""Every sampled trajectory of a text run on disk, token by token."""

import json
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from gradhat.training.run_folder import RunFolder, whole_file
from gradhat.trajectories import Trajectories


def write_rollouts(
    run: RunFolder, step: int, sampled: Trajectories, chosen: Tensor, adv: Tensor | None
) -> None:
    """Write all that a step sampled as one parquet file, a row each, per-token columns as lists.

    `chosen` int64 `[N]` are the rows that were learned from, `adv` `[N, T]` their credit.
    """
    from pyarrow import Table, parquet  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    table: Any = Table.from_pylist(list(rollout_rows(step, sampled, chosen, adv)))  # pyright: ignore[reportUnknownMemberType]
    with whole_file(run.rollouts / f"step_{step:06d}.parquet") as partial:
        parquet.write_table(table, partial, compression="zstd")  # pyright: ignore[reportUnknownMemberType]


def rollout_rows(
    step: int, sampled: Trajectories, chosen: Tensor, adv: Tensor | None
) -> Iterator[dict[str, Any]]:
    """Yield one row per trajectory. Token lists stop at its last step; `adv` is null without credit,
    `reward` where nobody could judge."""
    credit = {} if adv is None else dict(zip(chosen.tolist(), adv, strict=True))
    for i, record in enumerate(sampled.records):
        mask = sampled.mask[i]
        length = int(mask.nonzero().max()) + 1 if bool(mask.any()) else 0
        yield {
            "step": step,
            "group": int(sampled.group[i]),
            "version": int(sampled.version[i]),
            "prompt": record.prompt,
            "completion": record.completion,
            "reward": record.verdict.reward if record.verdict.judged else None,
            "parts": json.dumps(record.verdict.parts),
            "why": record.verdict.why,
            "stop": record.stop,
            "prompt_tokens": list(sampled.numbers()[i]),
            "tokens": sampled.actions[i, :length].tolist(),
            "logp": sampled.logp[i, :length].tolist(),
            "adv": credit[i][:length].tolist() if i in credit else None,
            "mask": mask[:length].tolist(),
        }
