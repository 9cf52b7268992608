"""app-compose.json: the document that describes an app, and its hash (spec deploy section 2)."""
