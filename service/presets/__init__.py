"""Keep named options of requests for each owner, so that all their clients and browsers share them."""
