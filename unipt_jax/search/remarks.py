"""What a person should know of a crop that was found, or of a picture that was asked."""

PHOTOGRAPH = (
    "not shaped like one person: the score is of all that is in it, and says little"
)
ASKED_PHOTOGRAPH = (
    "the picture asked with is not shaped like one person; cut the person out"
)
CHANGED = "changed since it was indexed"
GONE = "the file is gone"


def unread(error: OSError | MemoryError) -> str:
    """Why a file's picture cannot be shown."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return GONE
    if isinstance(error, MemoryError):
        return "cannot be read: out of memory"
    return f"cannot be read: {error.strerror or error}"
