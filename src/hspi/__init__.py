"""hspi tells which hardware and software platform serves a language model.

Implements and extends *Hardware and Software Platform Inference* (Zhang et al., arXiv 2411.05197).
"""

__version__ = "0.1.0"
