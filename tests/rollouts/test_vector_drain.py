"""Which episodes are reported: those that are learned from, and not those of environments that wait."""

import pytest
import torch
from ticker import ENV, Chooser

from gradhat.envs.gym import GymSpec, make
from gradhat.rollouts.vector import Collector


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
@pytest.mark.parametrize("per_env", [1, 3])
def test_the_episodes_that_are_reported_are_those_that_are_returned(mode: str, per_env: int) -> None:
    """Environments that are done early play on: their further episodes are the short ones."""
    collector = Collector(make(GymSpec(ENV, 6, "sync", {}, mode)), seed=1)  # type: ignore[arg-type]
    collector.collect(Chooser(), 9, torch.Generator(), version=0)
    earlier = len(collector.drain())
    collector.collect(Chooser(), 9, torch.Generator(), version=0)
    before, num_frames = collector._finished.copy(), collector.num_frames  # pyright: ignore
    found = collector.episodes(Chooser(), per_env, torch.Generator(), version=0)
    drained = collector.drain()
    assert earlier and before and drained[: len(before)] == [episode for _, episode in before]
    reported = drained[len(before) :]
    assert sorted(e.length for e in reported) == sorted(found.mask.sum(1).tolist())
    assert sorted(e.ret for e in reported) == pytest.approx(sorted(found.returns().tolist()), rel=1e-5)
    assert collector.num_frames - num_frames > int(found.mask.sum()), "frames that are dropped count"
