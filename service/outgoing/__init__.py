"""Connect to hosts that clients name, for inputs and webhooks: only to public addresses, and not for long."""
