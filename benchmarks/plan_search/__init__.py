"""Which kernel plan a virtual GPU's products follow: books of plans that are run teach what to run next.

No verdict uses it yet, so no stage of the pipeline depends on it.
"""
