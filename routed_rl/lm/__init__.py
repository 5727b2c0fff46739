"""Language models: corpora with labels, a training loop, routing, ablation, steering."""
