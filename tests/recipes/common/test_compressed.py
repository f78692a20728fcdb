import bz2
import gzip
import lzma
import os

import pytest
import zstandard

from recipes.common.compressed import CHUNK, open_binary

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
DATA = os.urandom(100_000)  # so that members are longer than a chunk is


@pytest.fixture(params=COMPRESS)
def ending(request):
    return request.param


def read(path, data):
    path.write_bytes(data)
    trailing: dict[str, int] = {}
    with open_binary(path, trailing) as file:
        return file.read(), trailing.get(str(path), 0)


def test_members_are_read_one_after_the_other(tmp_path, ending):
    compress = COMPRESS[ending]
    path = tmp_path / f"a{ending}"
    assert read(path, compress(DATA)) == (DATA, 0)
    assert read(path, compress(DATA) + compress(b"") + compress(b"more")) == (DATA + b"more", 0)
    assert read(path, compress(DATA) + bytes(8) + compress(b"more")) == (DATA + b"more", 0)
    assert read(path, compress(b"")) == (b"", 0)


@pytest.mark.parametrize("behind", [b"\n", b"garbage", bytes(512), bytes(7) + b"garbage"])
def test_bytes_behind_the_end_are_counted(tmp_path, ending, behind):
    path = tmp_path / f"a{ending}"
    assert read(path, COMPRESS[ending](DATA) + behind) == (DATA, len(behind))


def test_zeros_behind_the_end_are_padding_however_many(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    padding = bytes(3 * CHUNK)
    assert read(path, COMPRESS[ending](DATA) + padding) == (DATA, len(padding))
    with open_binary(path) as file:
        assert file.read() == DATA


def test_many_bytes_behind_the_end_are_a_damaged_member(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    second = bytearray(COMPRESS[ending](DATA))
    second[0] ^= 0xFF
    with pytest.raises(OSError, match=f"{len(second):,} of its .* bytes lie behind the end"):
        read(path, COMPRESS[ending](DATA) + second)


def test_bytes_that_nobody_counts_are_damage(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(COMPRESS[ending](DATA) + b"garbage")
    with open_binary(path) as file, pytest.raises(OSError, match="7 of its"):
        file.read()


def test_what_is_cut_off_or_changed_is_an_error(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    whole = COMPRESS[ending](DATA)
    for end in (1, 5, len(whole) // 2, len(whole) - 1):
        with pytest.raises(EOFError, match="end too early"):
            read(path, whole[:end])
    with pytest.raises(EOFError):
        read(path, whole + whole[:-4])
    if ending != ".zst":  # which has a checksum only where it is asked for
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 1
        with pytest.raises(OSError):
            read(path, bytes(changed))
