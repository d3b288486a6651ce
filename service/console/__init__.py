"""Serve the console: a web page on which a person requests videos and watches their progress."""
