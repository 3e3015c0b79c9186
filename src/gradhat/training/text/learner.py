"""From the settings of a run to what learns in it."""

from dataclasses import replace
from pathlib import Path

from gradhat.algorithms import grpo, reinforce
from gradhat.algorithms.ascend import Optimizer
from gradhat.algorithms.grpo_family import FAMILY, MISMATCH
from gradhat.algorithms.learner import GroupLearner, Learner, ReinforceLearner
from gradhat.policies.language import weights
from gradhat.policies.language.policy import LanguagePolicy
from gradhat.policies.language.transformer import Transformer
from gradhat.training.text.config import REINFORCE, TrainConfig
from gradhat.training.text.model import compute_dtype


def make_learner(config: TrainConfig, network: Transformer, optimizer: Optimizer, model: Path) -> Learner:
    """Return the learner that `config.algorithm` names; the folder `model` holds KL's reference."""
    policy = LanguagePolicy(network, config.temperature, config.token_budget)
    if config.algorithm == REINFORCE:
        return ReinforceLearner(
            policy, optimizer, reinforce.Settings(config.baseline_decay), reinforce.init()
        )
    settings = grpo.Settings(
        length=config.max_new_tokens,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        kl_coef=config.kl_coef,
        num_epochs=config.num_epochs,
        mismatch_cap=config.mismatch_cap,
        mismatch_low=config.mismatch_low,
        mismatch_high=config.mismatch_high,
    )
    row = replace(FAMILY[config.algorithm], mismatch=MISMATCH[config.mismatch])
    reference = None
    if config.kl_coef > 0:
        frozen = weights.load(model, compute_dtype(config.dtype)).requires_grad_(False)
        reference = LanguagePolicy(frozen, config.temperature, config.token_budget)
    return GroupLearner(policy, optimizer, row, settings, reference)
