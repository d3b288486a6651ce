"""Order videos and look after them: `POST /generate` and everything under `/jobs`."""
