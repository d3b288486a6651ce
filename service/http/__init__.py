"""Limits on what a client can make the service do: connections, bodies, and orders that bring inputs."""
