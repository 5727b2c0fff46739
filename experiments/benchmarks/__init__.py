"""The measurements of ``routed-rl benchmark``: ratios within one run, from medians of interleaved repeats."""
