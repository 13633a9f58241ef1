"""The format: codecs' bounds, the arithmetic of segments, canonical bytes, and the documented reader."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_world import TinyTeacher, build, make_scenes, make_source
from safetensors import safe_open

from teachers.cache.codecs import CODECS
from teachers.cache.format import Manifest, canonical, digest_of
from teachers.cache.keys import key_digest, key_digests
from teachers.cache.reader import CacheReader
from teachers.errors import CacheError

EMPTY = Manifest({"name": "t"}, {"reader": "r"}, "fp16", (16, 16), True)


def maps(seed: int, rows: int = 40) -> np.ndarray:
    dice = np.random.default_rng(seed)
    spread = 10.0 ** dice.uniform(-6, 4, (rows, 1, 1))
    return (dice.normal(size=(rows, 8, 8)) * spread + dice.normal(size=(rows, 1, 1)) * spread * 3).astype(np.float32)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_codec_keeps_its_bound(name: str) -> None:
    logits = maps(1)
    logits[0] = 3.25
    logits[1] = 0.0
    codec = CODECS[name]
    tensors = codec.encode(logits, str)
    decoded = codec.decode(tensors, 0, len(logits))
    error = np.abs(decoded.astype(np.float64) - logits).reshape(len(logits), -1).max(axis=1)
    bound = codec.bound(tensors, 0, len(logits), logits)
    assert decoded.dtype == np.float32
    assert (error <= bound).all()
    # The bound is no more generous than the format says, and not an idle one.
    flat = logits.reshape(len(logits), -1).astype(np.float64)
    peak, width = np.abs(flat).max(axis=1), flat.max(axis=1) - flat.min(axis=1)
    stated = np.maximum(peak * 2.0**-11, 2.0**-25) if name == "fp16" else width / 510 + peak * 2.0**-20 + 1e-27
    assert (bound <= stated * 1.0001).all()
    assert (error[2:] > bound[2:] * 0.3).all()
    assert (decoded[0] == 3.25).all() and (decoded[1] == 0.0).all()
    assert np.array_equal(codec.decode(tensors, 5, 7), decoded[5:7])


def test_what_a_codec_cannot_hold_is_refused_by_name() -> None:
    logits = maps(2, 3)
    logits[1, 2, 3] = 70000.0
    with pytest.raises(CacheError, match=r"scene 1: largest \|logit\| is 70000.*--codec q8"):
        CODECS["fp16"].encode(logits, "scene {}".format)
    CODECS["q8"].encode(logits, str)
    for bad in (np.nan, np.inf):
        logits[2, 0, 0] = bad
        for codec in CODECS.values():
            with pytest.raises(CacheError, match=r"scene [12]: .*(finite|q8)"):
                codec.encode(logits, "scene {}".format)


def test_segments_cover_the_table_exactly_once_however_it_grew() -> None:
    dice = np.random.default_rng(3)
    for _ in range(30):
        manifest, names, views = EMPTY, [], 0
        for _ in range(4):
            names += [f"s{len(names) + number}" for number in range(int(dice.integers(0, 9)))]
            if not names:
                continue
            asked = int(dice.integers(1, 5))
            before = manifest.segments
            manifest = manifest.grown(names, asked, int(dice.integers(1, 5)))
            views = max(views, asked)
            assert manifest.segments[: len(before)] == before
            assert manifest.grown(names, asked, 3) is manifest
            assert (manifest.scenes, manifest.views) == (len(names), views)
            seen: dict[tuple[int, int], tuple[int, int, int]] = {}
            for number, span in enumerate(manifest.spans()):
                assert span == manifest.span(number)
                for scene in range(span.scene_start, span.scene_stop):
                    for view in range(span.view_start, span.view_stop):
                        assert (scene, view) not in seen
                        seen[scene, view] = (span.shard, scene - span.scene_start, view - span.view_start)
            assert set(seen) == {(scene, view) for scene in range(len(names)) for view in range(views)}
            assert all(manifest.locate(*place) == where for place, where in seen.items())
        assert manifest.key_bytes() == b"".join(map(key_digest, names))
        assert Manifest.from_json(manifest.to_json(), Path("x")) == manifest


def test_scenes_must_be_distinct() -> None:
    assert len(key_digests(["a", "b"])) == 2
    with pytest.raises(CacheError, match=r"'b' and 'b' are not distinct"):
        key_digests(["a", "b", "c", "b"])


def test_every_change_of_a_manifest_is_found() -> None:
    text = EMPTY.grown(["a", "b"], 2, 2).to_json()
    assert Manifest.from_json(text, Path("x")).scenes == 2
    for position in range(len(text) - 1):
        damaged = bytearray(text)
        damaged[position] ^= 1
        if text[position : position + 1].isspace():
            continue
        with pytest.raises(CacheError, match=r"^x (is|has) "):
            Manifest.from_json(bytes(damaged), Path("x"))


@pytest.mark.parametrize(
    ("member", "value"),
    [("heatmap_size", [16]), ("heatmap_size", [16, 0]), ("heatmap_size", [16, "x"]), ("has_inout", 1), ("teacher", None), ("codec", []), ("command", 3)]
    + [(name, value) for name in ("first_shard", "scene_start", "scene_stop", "view_stop") for value in (0.5, "1", None, -1, 7, 10**30)]
    + [("scenes_per_shard", value) for value in (0.5, "1", None, -1, 0, True)]
    + [("keys", ""), ("keys", "AAAA"), ("keys", "&")],
)
def test_a_manifest_that_fits_its_digest_and_not_the_format_is_refused(member: str, value: object) -> None:
    body = json.loads(EMPTY.grown(["a", "b"], 2, 2).grown(["a", "b", "c"], 3, 2).to_json())
    assert len(body["segments"]) == 3
    del body["digest"]
    place = body if member in body else body["segments"][2]
    place[member] = value
    text = json.dumps({**body, "digest": digest_of(canonical(body))}).encode()
    with pytest.raises(CacheError, match=r"^x is not a cache's manifest"):
        Manifest.from_json(text, Path("x"))


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"", b"\xff", b"[]", b"7"], ids=range(7))
def test_what_is_no_manifest_at_all_is_refused(text: bytes) -> None:
    with pytest.raises(CacheError, match=r"^x is "):
        Manifest.from_json(text, Path("x"))


@pytest.mark.parametrize("header", [b"[" * 80_000, b'{"a":' * 16_000, b'{"__metadata__":5}', b'{"__metadata__":{}}', b"7"], ids=range(5))
def test_a_header_that_is_none_is_named_as_damage(tmp_path: Path, header: bytes) -> None:
    source, cache = make_source(make_scenes(tmp_path / "pictures", 2)), tmp_path / "cache"
    build(cache, source)
    header += b" " * (-len(header) % 8)
    (cache / "shards/00000.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CacheError, match=r"00000.safetensors is .*--rebuild 0"):
        CacheReader(cache).rows()


def test_a_manifest_of_another_version_is_refused_as_such() -> None:
    body = json.loads(EMPTY.to_json())
    with pytest.raises(CacheError, match=r"version 2, this program reads .* version 1"):
        Manifest.from_json(json.dumps({**body, "version": 2}).encode(), Path("x"))
    with pytest.raises(CacheError, match=r"is no cache: it has no cache.json; build one with `distill cache build ... --out 'no where'`"):
        Manifest.load(Path("no where"))


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_a_shard_is_a_safetensors_file_and_the_documented_reader_reads_it(tmp_path: Path, codec: str) -> None:
    source = make_source(make_scenes(tmp_path / "pictures", 6))
    build(tmp_path / "cache", source, codec=codec)
    reader = CacheReader(tmp_path / "cache")
    with warnings.catch_warnings():
        # Torch warns of memory that cannot be written, as a mapped file's is: at the first time, and on the user's terminal.
        warnings.simplefilter("error")
        torch.set_warn_always(True)
        assert len(reader.read(source.keys[2], 0).heatmap) == 2
    torch.set_warn_always(False)
    with safe_open(tmp_path / "cache/shards/00001.safetensors", "np") as file:
        assert file.metadata()["scenes"] == "4:6" and file.metadata()["views"] == "0:3"
        assert file.get_tensor("offsets").tolist() == [0, 1, 2, 3, 5, 7, 9]
        assert file.get_tensor("heatmaps").dtype == (np.float16 if codec == "fp16" else np.uint8)
    page = (Path(__file__).parents[1] / "docs/cache-format.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    for key in source.keys:
        for view in range(3):
            cached = reader.read(key, view)
            heatmap, inout, boxes, geometry = names["read"](tmp_path / "cache", key, view)  # type: ignore[operator]
            assert np.array_equal(heatmap, cached.heatmap) and np.array_equal(inout, cached.inout)
            assert np.array_equal(boxes, cached.boxes) and np.array_equal(geometry, cached.geometry)


def test_a_teacher_without_inout_has_no_inout_tensor(tmp_path: Path) -> None:
    source = make_source(make_scenes(tmp_path / "pictures", 3))
    build(tmp_path / "cache", source, TinyTeacher(has_inout=False))
    reader = CacheReader(tmp_path / "cache")
    assert not reader.has_inout and reader.read(source.keys[2], 1).inout is None
    with safe_open(tmp_path / "cache/shards/00000.safetensors", "np") as file:
        assert "inout" not in file.keys()  # noqa: SIM118 (safe_open is no mapping)


def test_a_request_for_nothing_is_refused() -> None:
    with pytest.raises(CacheError, match="views"):
        replace(EMPTY).grown(["a"], 0, 64)
