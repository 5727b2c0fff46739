"""What forked processes of tests need, imported without a look for garbage; no fork looks among it either."""
# ruff: noqa: E402, F401

import gc

gc.disable()

import torch._dynamo

import routed_rl.experiments.gridworld.train
import routed_rl.unlearning
import tests.lm.killed_training

gc.freeze()
gc.enable()
