"""What an entry of a zip says of itself, before it is read."""

from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipInfo

_ENCRYPTED = 0x1


def is_encrypted(member: ZipInfo) -> bool:
    return bool(member.flag_bits & _ENCRYPTED)


def is_read_in_pieces(member: ZipInfo) -> bool:
    """Whether what is unpacked is bounded by what is asked for.

    Of bzip2 and lzma zipfile unpacks all that it has read of the file, however large that is.
    """
    return member.compress_type in (ZIP_STORED, ZIP_DEFLATED)
