"""The unlearning arena: methods, robust stages and attacks on a benchmark, in one table."""
