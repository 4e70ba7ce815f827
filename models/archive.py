"""What no checksum of a zip covers, its directory, read as strictly as torch does; Python's zipfile is lenient."""

import struct
import zipfile

ENTRY = struct.Struct("<28s3H12x")  # of the directory; the lengths of its name, extra field and comment
END, END_64, LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
KNOWN_FLAGS = 0x080E  # a name in UTF-8, sizes behind the data, and how hard it was compressed
FOLDER = 0x10  # of MS-DOS: torch gives such a member's bytes as whatever the memory held


def defect(archive: zipfile.ZipFile) -> str | None:
    """What the directory says that cannot be; None where it agrees with itself."""
    for member in archive.infolist():
        is_stored = member.compress_type == zipfile.ZIP_STORED
        if (is_stored and member.compress_size != member.file_size) or member.flag_bits & ~KNOWN_FLAGS:
            return f"the directory's entry of {member.filename} contradicts itself"
        if member.volume or (member.external_attr & FOLDER and not member.is_dir()):
            return f"the directory's entry of {member.filename} is not as PyTorch writes it"
    names_differ = len(set(archive.namelist())) == len(archive.infolist())
    is_right = names_differ and _ends_right(archive, _directory_size(archive))
    return None if is_right else "its directory contradicts itself"


def _directory_size(archive: zipfile.ZipFile) -> int:
    """The bytes that the directory's entries say they have."""
    file, size = archive.fp, 0
    for _ in archive.infolist():
        file.seek(archive.start_dir + size)
        header = file.read(ENTRY.size)
        size += ENTRY.size + sum(ENTRY.unpack(header)[1:]) if len(header) == ENTRY.size else 0
    return size


def _ends_right(archive: zipfile.ZipFile, directory_size: int) -> bool:
    """Whether the records behind the directory say rightly where it begins, how long it is, how many entries it has."""
    file, count = archive.fp, len(archive.infolist())
    file.seek(archive.start_dir + directory_size)
    records = file.read().removesuffix(archive.comment)
    if len(records) == END.size:  # an archive without zip64, which PyTorch does not write
        return END.unpack(records)[3:6] == (count, count, directory_size)
    if len(records) != END_64.size + LOCATOR.size + END.size:
        return False
    _, size, *_, disk, its_disk, on_disk, in_all, length, start = END_64.unpack_from(records)
    _, end_disk, end_at, disks = LOCATOR.unpack_from(records, END_64.size)
    told = (size, disk, its_disk, on_disk, in_all, length, start, end_disk, end_at, disks)
    end_at = archive.start_dir + directory_size
    return told == (END_64.size - 12, 0, 0, count, count, directory_size, archive.start_dir, 0, end_at, 1)
