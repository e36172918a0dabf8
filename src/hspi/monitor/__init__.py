"""The audits of one endpoint over time: the next one, who is told of a change, the picture."""
