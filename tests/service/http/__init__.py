"""Limits on connections, bodies and orders, attacked over real sockets."""
