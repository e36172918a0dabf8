"""Inference servers in environments of their own, as platforms: where they stand, how they are started and asked."""
