"""Handle what all routes have in common: connections, bodies, limits, origins, request ids and errors."""
