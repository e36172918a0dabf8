"""An endpoint and a claim → a verdict, with evidence that anyone can score again.

discovery → plan → questions (client) → answers → scoring → sequential evidence → conclusion; everything lies in one
folder (`material`, `records`) and is sealed at the end.
"""
