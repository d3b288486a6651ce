"""Create and manage jobs: `POST /generate` and everything under `/jobs`."""
