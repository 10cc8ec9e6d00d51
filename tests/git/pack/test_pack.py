"""The push parser of packs, against packs of real git and against broken ones."""

from __future__ import annotations

import errno
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifactfs.errors import CorruptData
from artifactfs.git.pack import format as packformat
from artifactfs.git.pack.parser import PackLimits, PackParser
from tests.git.pack_samples import (
    HandmadePack,
    SampleRepository,
    blob_id,
    content_of,
    make_delta,
    parse,
    sealed,
)

SHAPES = {
    "whole objects": ("--window=0", "--no-reuse-delta"),
    "offset deltas": ("--delta-base-offset", "--depth=40", "--window=50"),
    "oid deltas": ("--depth=40", "--window=50"),
    "stored": ("--compression=0", "--no-reuse-object"),
}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("step", [1 << 16, 997])
def test_every_object_of_a_pack_comes_out_right(
    sample: SampleRepository, tmp_path: Path, options: tuple[str, ...], step: int
) -> None:
    done = parse(sample.pack(*options), tmp_path, step=step)
    assert {item.oid: (item.kind, content_of(item)) for item in done} == sample.contents
    assert all(item.size == len(content_of(item)) for item in done)


def test_byte_by_byte(sample: SampleRepository, tmp_path: Path) -> None:
    oids = [oid for oid in sample.oids() if len(sample.contents[oid][1]) < 10_000]
    pack = sample.pack("--delta-base-offset", oids=oids)
    done = parse(pack, tmp_path, step=1)
    assert {item.oid: content_of(item) for item in done} == {
        oid: sample.contents[oid][1] for oid in oids
    }


def test_an_object_is_handed_out_when_its_last_byte_arrives(tmp_path: Path) -> None:
    handmade = HandmadePack()
    handmade.blob(b"first")
    second = handmade.blob(b"second")
    pack = handmade.finish()
    with open(tmp_path / "pack", "w+b", buffering=0) as file:
        parser = PackParser(file.fileno(), spool_dir=tmp_path)
        assert parser.feed(pack[: second - 1]) == []
        assert [item.data for item in parser.feed(pack[second - 1 : second])] == [b"first"]
        assert [item.data for item in parser.feed(pack[second:-20])] == [b"second"]
        with pytest.raises(CorruptData, match="cut"):
            parser.finish()
        assert parser.feed(pack[-20:]) == []
        parser.finish()


def test_large_objects_go_through_files_and_memory_stays_bounded(tmp_path: Path) -> None:
    size = 48 << 20
    base = bytes(size)
    handmade = HandmadePack()
    at = handmade.blob(base)
    handmade.ofs_delta(at, make_delta(base, [b"x", *[(0, 4 << 20)] * 11]))
    pack = handmade.finish()
    expected = {blob_id(base): size, blob_id(b"x" + bytes(44 << 20)): 1 + (44 << 20)}
    del base
    tracemalloc.start()
    try:
        done = parse(pack, tmp_path, step=1 << 16)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {item.oid: item.size for item in done} == expected
    assert all(item.spooled and item.spooled.stat().st_size == item.size for item in done)
    assert peak < 24 << 20


def test_a_feed_leaves_the_rest_for_later_when_it_took_long(tmp_path: Path) -> None:
    pack_of_zeros = HandmadePack()
    pack_of_zeros.blob(bytes(20 << 20))
    pack = pack_of_zeros.finish()
    assert len(pack) < 1 << 16
    with open(tmp_path / "pack", "w+b", buffering=0) as file:
        parser = PackParser(file.fileno(), spool_dir=tmp_path)
        assert parser.feed(pack) == []
        rounds = 0
        while parser.pending:
            parser.feed(b"")
            rounds += 1
        parser.finish()
    assert rounds > 5


def test_deltas_before_their_base(tmp_path: Path) -> None:
    base = b"the quick brown fox " * 20
    middle = b"A" + base
    last = b"B" + middle
    handmade = HandmadePack()
    first = handmade.ref_delta(middle, make_delta(middle, [b"B", (0, len(middle))]))
    handmade.ofs_delta(first, make_delta(last, [b"C", (0, len(last))]))
    handmade.ref_delta(base, make_delta(base, [b"A", (0, len(base))]))
    handmade.blob(base)
    done = parse(handmade.finish(), tmp_path)
    assert [item.data for item in done] == [base, middle, last, b"C" + last]


def test_a_long_chain_of_deltas_before_their_bases(tmp_path: Path) -> None:
    contents = [b"x" * 50 + b"%d" % number for number in range(1500)]
    handmade = HandmadePack()
    for content, base in zip(contents[:0:-1], contents[-2::-1], strict=True):
        handmade.ref_delta(base, make_delta(base, [(0, 50), content[50:]]))
    handmade.blob(contents[0])
    done = parse(handmade.finish(), tmp_path, step=1 << 16)
    assert [item.data for item in done] == contents


def test_deltas_of_large_objects_before_their_base(tmp_path: Path) -> None:
    base = bytes(range(256)) * 100
    result = b"A" + base
    handmade = HandmadePack()
    handmade.ref_delta(result, make_delta(result, [(0, 5)]))
    handmade.ref_delta(base, make_delta(base, [b"A", (0, len(base))]))
    handmade.blob(base)
    done = parse(handmade.finish(), tmp_path, spool_bytes=1000)
    assert {content_of(item) for item in done} == {base, result, result[:5]}
    assert {item.oid for item in done} == {blob_id(x) for x in (base, result, result[:5])}


def test_an_object_twice_and_an_empty_pack(tmp_path: Path) -> None:
    handmade = HandmadePack()
    handmade.blob(b"same")
    handmade.blob(b"same")
    assert [item.data for item in parse(handmade.finish(), tmp_path)] == [b"same", b"same"]
    assert parse(HandmadePack().finish(), tmp_path) == []


def broken_packs() -> dict[str, bytes]:
    def one(code: int, data: bytes, **options: int) -> bytes:
        handmade = HandmadePack()
        handmade.add(code, data, size=options.get("size"))
        return handmade.finish(options.get("count"))

    def delta(base: bytes, data: bytes) -> bytes:
        handmade = HandmadePack()
        handmade.ofs_delta(handmade.blob(base), data)
        return handmade.finish()

    thin = HandmadePack()
    thin.ref_delta(b"elsewhere", make_delta(b"elsewhere", [(0, 4)]))
    far = HandmadePack()
    far.ofs_delta(far.blob(b"base") - 5, make_delta(b"base", [(0, 4)]))
    good = one(3, b"content")
    return {
        "not a pack": sealed(b"JUNK" + bytes(8)),
        "unknown version": sealed(b"PACK\0\0\0\x09" + bytes(4)),
        "unknown type": one(5, b"content"),
        "type 0": one(0, b"content"),
        "header says more": one(3, b"content", size=8),
        "header says less": one(3, b"content", size=6),
        "header says far more": one(3, b"content", size=1 << 50),
        "count too high": one(3, b"content", count=2),
        "count too low": one(3, b"content", count=0),
        "bytes after the end": good + b"x",
        "wrong checksum": good[:-1] + bytes([good[-1] ^ 1]),
        "not zlib": sealed(b"PACK\0\0\0\2\0\0\0\1" + b"\x37" + b"garbage"),
        "impossible size": sealed(b"PACK\0\0\0\2\0\0\0\1" + b"\xbf" + b"\xff" * 12),
        "thin": thin.finish(),
        "base is no entry": far.finish(),
        "delta of another base": delta(b"base", make_delta(b"longer base", [(0, 4)])),
        "delta copies beyond base": delta(b"base", make_delta(b"base", [(2, 4)])),
        "delta makes too little": delta(b"base", b"\x04\x09\x01x"),
        "delta makes too much": delta(b"base", b"\x04\x01\x03xyz"),
        "delta is cut": delta(b"base", b"\x04\x03\x03x"),
        "delta operand is cut": delta(b"base", b"\x04\x03\xff"),
        "delta with reserved op": delta(b"base", b"\x04\x01\x00"),
        "empty delta": delta(b"base", b""),
    }


@pytest.mark.parametrize("pack", broken_packs().values(), ids=broken_packs())
@pytest.mark.parametrize("spool_bytes", [2, 1 << 20])
def test_broken_packs_are_corrupt(tmp_path: Path, pack: bytes, spool_bytes: int) -> None:
    with pytest.raises(CorruptData):
        parse(pack, tmp_path, spool_bytes=spool_bytes)


@pytest.fixture(scope="module")
def small_pack(sample: SampleRepository) -> bytes:
    oids = [oid for oid in sample.oids() if len(sample.contents[oid][1]) < 1000]
    return sample.pack("--delta-base-offset", oids=oids)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_anywhere_is_found_or_harmless(
    small_pack: bytes,
    sample: SampleRepository,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    directory = tmp_path_factory.mktemp("damaged")
    at = data.draw(st.integers(0, len(small_pack) - 1), label="at")
    damage = data.draw(st.sampled_from(["flip", "cut", "drop", "insert"]), label="damage")
    flip = data.draw(st.integers(1, 255), label="flip")
    reseal = data.draw(st.booleans(), label="reseal")
    damaged = {
        "flip": small_pack[:at] + bytes([small_pack[at] ^ flip]) + small_pack[at + 1 :],
        "cut": small_pack[:at],
        "drop": small_pack[:at] + small_pack[at + 1 :],
        "insert": small_pack[:at] + bytes([flip]) + small_pack[at:],
    }[damage]
    if reseal:
        damaged = sealed(damaged[:-20])
    try:
        done = parse(damaged, directory, step=data.draw(st.integers(50, 5000), label="step"))
    except CorruptData:
        return
    assert reseal, "the checksum must have found this"
    for item in done:
        content = content_of(item)
        assert packformat.object_id(item.kind, content) == item.oid
        if item.oid in sample.contents:
            assert sample.contents[item.oid] == (item.kind, content)


def test_what_a_pack_may_hold_is_limited(tmp_path: Path) -> None:
    """By the headers of its entries, and by what deltas make: nothing is inflated for it."""
    limits = PackLimits(1000, 2)
    base = bytes(1000)
    grows = HandmadePack()
    grows.ofs_delta(grows.blob(base), make_delta(base, [(0, 1000), b"x"]))
    grows_late = HandmadePack()
    grows_late.ref_delta(base, make_delta(base, [(0, 1000), b"x"]))
    grows_late.blob(base)
    many = HandmadePack()
    for number in range(3):
        many.blob(b"%d" % number)
    large = HandmadePack()
    large.blob(bytes(1001))
    for bad in (grows, grows_late, many, large):
        with pytest.raises(CorruptData, match="are the most"):
            parse(bad.finish(), tmp_path, limits=limits)
    good = HandmadePack()
    good.ofs_delta(good.blob(base), make_delta(base, [(0, 999), b"x"]))
    assert len(parse(good.finish(), tmp_path, limits=limits)) == 2


def test_an_entry_of_nothing_ends(tmp_path: Path) -> None:
    """Deflate has blocks without content: any number of them would be valid."""
    nothing = b"\x78\x01" + b"\x00\x00\x00\xff\xff" * 100_000
    pack = struct.pack(">4sLL", b"PACK", 2, 1) + packformat.encode_entry(3, 5) + nothing
    with pytest.raises(CorruptData, match="does not end"):
        parse(pack, tmp_path)


def test_there_has_to_be_room_for_a_large_object(tmp_path: Path) -> None:
    pack = HandmadePack()
    pack.add(3, b"x", size=1 << 33 << 10)
    with pytest.raises(OSError) as failed:
        parse(pack.finish(), tmp_path, limits=PackLimits(1 << 60))
    assert failed.value.errno == errno.ENOSPC
