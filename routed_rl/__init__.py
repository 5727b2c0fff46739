"""Oversight by gradient routing: let a network learn an unwanted behaviour in a place you know, then delete it."""

__version__ = "0.1.0"
