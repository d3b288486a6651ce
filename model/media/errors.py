"""Define the errors of decoding."""


class UnusableMedia(Exception):
    """The file is not a usable image or clip. The message can be shown to the client."""


class SandboxUnavailable(Exception):
    """The file could not be decoded for a reason outside of it. A retry can help."""
