"""Routed actor-critics under partial oversight."""

from routed_rl.rl.evaluation import evaluate, evaluate_policies, steerings, true_returns
from routed_rl.rl.overseer import METHODS, Method, Overseer
from routed_rl.rl.oversight_env import EpisodeEnds, check_oversight_env
from routed_rl.rl.policies import ACTIVATIONS, RoutedActorCriticPolicy
from routed_rl.rl.ppo import RoutedPPO

__all__ = [
    "ACTIVATIONS",
    "METHODS",
    "EpisodeEnds",
    "Method",
    "Overseer",
    "RoutedActorCriticPolicy",
    "RoutedPPO",
    "check_oversight_env",
    "evaluate",
    "evaluate_policies",
    "steerings",
    "true_returns",
]
