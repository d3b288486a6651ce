"""Guard the HTTP side: limits on connections, bodies and orders; hosts and origins; request ids."""
