"""How the pocket checkpoint was made: its world, its training, its judge.

Nothing of the server imports this package; it imports `model`, so that what is trained is what runs.
Begin with `training.world` (what can be seen), `training.captions` (how it is said) and `training.judge`
(whether a video shows it); `README.md` says in which order the stages are run.
"""
