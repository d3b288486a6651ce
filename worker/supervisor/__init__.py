"""Supervise one group of ranks: claim jobs, keep the group alive, store the videos. Without torch."""
