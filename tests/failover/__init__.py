"""Kill the primary of a replicated Redis again and again while clients request videos."""
