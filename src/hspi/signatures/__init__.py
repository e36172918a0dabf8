"""What platforms answered: the schema, the journal while it grows, the store, and how signatures are made."""
