"""What can be wrong with data that comes from outside."""

import pickle


class DataFileError(ValueError):
    """A data file is damaged, hostile, or not of the kind its name promises."""


class UnsafePickleError(DataFileError, pickle.UnpicklingError):
    """A pickle holds something other than plain data, or ends too early."""


class DownloadError(OSError):
    """A download could not be completed; what had arrived is kept and continued next time."""


class ChecksumError(DownloadError):
    """A downloaded file is not the one that was asked for; it has been removed."""
