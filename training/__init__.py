"""How the pocket checkpoint was trained, and how it is evaluated.

The server never imports this package. It trains the classes of `model` themselves, so what is trained is
what the server runs. Begin with `training.scenes` (what the videos show), `training.captions` (their
prompts) and `training.recognition` (what a video shows). `docs/pocket.md` lists the stages in order.
"""
