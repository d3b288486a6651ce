"""Why a file could not be decoded."""


class UnusableMedia(Exception):
    """The file is not a usable image or clip; the message is fit to be shown to the client."""


class SandboxUnavailable(Exception):
    """The file could not be decoded now, through no fault of its own; a retry can help."""
