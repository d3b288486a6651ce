"""Bring the weights to a machine, and check them: `python -m model.weights manifest|verify|fetch`.

Start reading at `model.weights.fetch`. Nothing here needs torch.
"""
