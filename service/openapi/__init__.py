"""Document the API: its OpenAPI schema, the page `/docs`, and the table of error codes."""
