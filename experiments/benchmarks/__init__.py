"""What ``routed-rl benchmark`` measures: always ratios within one run, from medians of interleaved repeats."""
