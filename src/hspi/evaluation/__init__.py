"""Honest evaluation (DESIGN.md §3): what was held out is in the name of every figure."""
