"""Unlearning: methods that suppress what a model knows, and attacks that bring it back."""
