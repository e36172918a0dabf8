"""What serves a model: records, the catalogue, this machine, and one adapter for each engine (imported late)."""
