"""Routed actor-critics for reinforcement learning under partial oversight."""

from routed_rl.rl.algorithm import RoutedAlgorithm
from routed_rl.rl.callbacks import SteeredEvalCallback
from routed_rl.rl.evaluation import evaluate, evaluate_policies, steerings, true_returns
from routed_rl.rl.networks import ACTIVATIONS, SymbolicImageEncoder
from routed_rl.rl.outcome_model import FinalSteps, OutcomeModel
from routed_rl.rl.overseer import METHODS, Method, Overseer
from routed_rl.rl.oversight_env import EpisodeEnds, check_oversight_env
from routed_rl.rl.oversight_study import OversightReport, OversightStudy
from routed_rl.rl.paper_policy import PaperPolicy
from routed_rl.rl.parallel import ParallelLearner
from routed_rl.rl.policies import RoutedActorCriticPolicy
from routed_rl.rl.ppo import RoutedPPO
from routed_rl.rl.reinforce import RoutedREINFORCE
from routed_rl.rl.steering import Steering

__all__ = [
    "ACTIVATIONS",
    "METHODS",
    "EpisodeEnds",
    "FinalSteps",
    "Method",
    "OutcomeModel",
    "Overseer",
    "OversightReport",
    "OversightStudy",
    "PaperPolicy",
    "ParallelLearner",
    "RoutedActorCriticPolicy",
    "RoutedAlgorithm",
    "RoutedPPO",
    "RoutedREINFORCE",
    "SteeredEvalCallback",
    "Steering",
    "SymbolicImageEncoder",
    "check_oversight_env",
    "evaluate",
    "evaluate_policies",
    "steerings",
    "true_returns",
]
