"""Environments: what a policy acts in, turn by turn, with tools.

- registry.py: which there are; worker_child.py: the locked process that holds their instances;
- instances.py: one instance a rollout, with a time limit for each call;
- calls.py, tool_chat.py: how a policy calls tools and reads their answers;
- trajectories.py: completions of several turns.
"""
