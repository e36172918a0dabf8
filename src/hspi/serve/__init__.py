"""`hspi serve`: any platform of the catalogue behind an OpenAI-compatible API."""
