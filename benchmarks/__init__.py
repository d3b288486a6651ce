"""What is measured: `counts` on any machine, `gpu` in seconds on one with a GPU, `overlap` of jobs."""
