"""What operators see: a port of its own for metrics, documentation and the details of readiness."""
