"""Document the API: its schema, its pages, its error codes."""
