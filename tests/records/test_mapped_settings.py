"""Settings of other trainers under our names."""

from __future__ import annotations

from grpo_core.records.settings import map_settings


def test_settings_are_the_policys_where_a_critic_has_them_too():
    # The nested names of verl; "critic.optim.lr" is shorter than the actor's name.
    actor = {"optim": {"lr": 1e-6}, "model": {"path": "Qwen/Qwen3-0.6B"}}
    critic = {"optim": {"lr": 1e-5}, "model": {"path": "critic"}}
    both = map_settings({"actor_rollout_ref": {"actor": actor}, "critic": critic})
    assert both.config.train.learning_rate == 1e-6
    assert both.config.model.name == "Qwen/Qwen3-0.6B"
    assert "train.learning_rate" not in map_settings({"critic": critic}).fields
